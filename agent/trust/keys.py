"""Public Ed25519 keys (RFC 8032), in a folder on each host.

They are PEM (SubjectPublicKeyInfo), as `openssl pkey -pubout` writes them too.

The library is loaded when the first key is there: most agents start without one, and it takes a tenth of their start.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

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
        from cryptography.hazmat.primitives import serialization

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
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError("it is no public key in PEM form; `tapster keys new` makes one") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("it is a key of another kind than Ed25519")  # noqa: TRY004 - the content is at fault
        return cls(key.public_bytes_raw())

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature is this key's over the message."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @cached_property
    def _key(self) -> "Ed25519PublicKey":
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        return Ed25519PublicKey.from_public_bytes(self.raw)


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
