"""Ed25519 keys (RFC 8032): public ones in a folder on each host, private ones with the operators.

Public keys are PEM (SubjectPublicKeyInfo), private ones PEM (PKCS#8), as `openssl genpkey -algorithm ed25519` makes
them too.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEYS_MAX = 16
"""Most keys that are trusted at a time; each bounds what a forged signature costs a host."""


class KeyFileError(Exception):
    """A key can't be used. The message names the file, the reason and the remedy."""


@dataclass(frozen=True)
class PublicKey:
    """A key that verifies; equal to another one if its 32 bytes are."""

    raw: bytes

    @property
    def id(self) -> str:
        """SHA-256 of the 32 bytes in hex: what signatures carry as a hint, and people compare."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def pem(self) -> str:
        """As text for files and statements."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self._key.public_bytes(serialization.Encoding.PEM, form).decode("ascii")

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Read a key.

        Raises:
            ValueError: It is no Ed25519 public key. The message says what it is.
        """
        if b"PRIVATE KEY" in pem:
            raise ValueError("it is a private key, which belongs to its operator alone; put the .pub file here")
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError("it is no public key in PEM form; `tapster keys new` makes one") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("it is a key of another kind than Ed25519")  # noqa: TRY004 - the content is at fault
        return cls(key.public_bytes_raw())

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature is this key's over the message."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @cached_property
    def _key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.raw)


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


def trusted_keys(folder: Path) -> dict[str, PublicKey]:
    """The public keys in a folder, by file name. None if there is no such folder.

    Raises:
        KeyFileError: The folder can't be read, others than root may change it, or a file in it is no public key.
            Nothing is skipped: a key that does not count would be a surprise on the day it is needed.
    """
    try:
        if not folder.exists():
            return {}
        if folder.stat().st_mode & 0o022:
            raise KeyFileError(f"{folder}: others than its owner can put keys there; `chmod go-w {folder}`")
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
        keys = {file.name: _trusted_key(file) for file in files}
    except OSError as error:
        raise KeyFileError(f"{error.filename}: can't be read: {error.strerror}; check owner and mode") from error
    if len(set(keys.values())) > KEYS_MAX:
        raise KeyFileError(f"{folder}: it has {len(keys)} keys, and {KEYS_MAX} can be trusted at a time")
    return keys


def _trusted_key(file: Path) -> PublicKey:
    try:
        return PublicKey.from_pem(file.read_bytes())
    except ValueError as error:
        raise KeyFileError(f"{file}: {error}") from error
