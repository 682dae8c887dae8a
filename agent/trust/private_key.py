"""Private Ed25519 keys (RFC 8032), which are with the operators.

They are PEM (PKCS#8), as `openssl genpkey -algorithm ed25519` makes them too.
"""

import os
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.trust.keys import KeyFileError, PublicKey


class PrivateKey:
    """A key that signs. It has no text form but the file that it is saved to."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.id})"

    @classmethod
    def new(cls) -> Self:
        """Make a key from the kernel's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, file: Path, passphrase: bytes | None = None) -> Self:
        """Read a key from its file.

        Raises:
            KeyFileError: It can't be read, others may read it, it is no Ed25519 private key, or it is encrypted and
                the passphrase is missing or wrong.
        """
        try:
            mode, pem = file.stat().st_mode, file.read_bytes()
        except OSError as error:
            raise KeyFileError(f"{file}: can't be read: {error.strerror}; check its name and owner") from error
        if mode & 0o077:
            raise KeyFileError(f"{file}: others can read or change this private key; `chmod 600 {file}`")
        try:
            key = serialization.load_pem_private_key(pem, passphrase)
        except TypeError as error:
            why = (
                "it is not encrypted; leave the passphrase out" if passphrase else "it is encrypted; give a passphrase"
            )
            raise KeyFileError(f"{file}: {why} (--passphrase-file)") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            wrong = "the passphrase is wrong, or it" if passphrase else "it"
            raise KeyFileError(f"{file}: {wrong} is no private key in PEM form (PKCS#8)") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError(f"{file}: it is a key of another kind than Ed25519; `tapster keys new` makes one")
        return cls(key)

    def save(self, file: Path, passphrase: bytes | None = None) -> None:
        """Write the key to a new file that only its owner can read, encrypted if there is a passphrase.

        Raises:
            KeyFileError: The file exists already, or can't be written.
        """
        encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        pem = self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KeyFileError(f"{file}: can't be made: {error.strerror}; no key is ever overwritten") from error
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(pem)
            opened.flush()
            os.fsync(descriptor)

    def sign(self, message: bytes) -> bytes:
        """The key's signature over a message, 64 bytes."""
        return self._key.sign(message)
