"""What operators do with their keys: put documents under seal, and read what is under one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.bus.topics import Scope
from agent.definition import Limits
from agent.document import PAYLOAD_TYPE, DesiredDocument, SignedDocument, read_document
from agent.strict_json import read_json
from agent.trust.dsse import Envelope, is_envelope, read_envelope
from agent.trust.policy import Unchecked
from agent.trust.private_key import PrivateKey

GENERATION_PLAUSIBLE = 10**15
"""A generation found on the bus that is above this would have the next signed one use up the numbers that are left."""


@dataclass(frozen=True, slots=True)
class Seal:
    """Keys that sign for a fleet."""

    fleet: str
    keys: tuple[PrivateKey, ...]

    def close(self, document: dict[str, Any], scope: Scope) -> bytes:
        """The signed envelope around a desired document's JSON form, for one host or group.

        Raises:
            ValueError: The document has no generation, or hosts would not take it.
        """
        bound = document | SignedDocument.binding(self.fleet, scope)
        SignedDocument.model_validate(bound)
        envelope = Envelope(PAYLOAD_TYPE, json.dumps(bound, ensure_ascii=False).encode())
        return signed(envelope, self.keys).encode()


@dataclass(frozen=True, slots=True)
class Sealed:
    """A signed document that came in a file, as it goes on the bus."""

    payload: bytes
    document: DesiredDocument


def read_sealed(text: bytes, *, fleet: str, limits: Limits) -> Sealed | None:
    """The signed document that a file holds, its signatures unchecked; None if it holds something else.

    Raises:
        DocumentRejected: It is a signed envelope, and hosts of the fleet would not take what is in it.
    """
    if not text.lstrip().startswith(b"{"):
        return None
    table = read_json(text.decode("utf-8", "replace"))
    if not is_envelope(table):
        return None
    envelope = read_envelope(table)
    inner = read_json(envelope.payload.decode("utf-8", "replace"))
    place = {"scope": "", "guest": ""} | (inner if isinstance(inner, dict) else {})
    kind, _, name = str(place["scope"]).partition(":")
    payload = envelope.encode()
    document = read_document(
        payload,
        scope=Scope("group" if kind == "group" else "host", name),
        guest=str(place["guest"]),
        properties={},
        limits=limits,
        opener=Unchecked(fleet),
    )
    return Sealed(payload, document)


def signed(envelope: Envelope, keys: Sequence[PrivateKey]) -> Envelope:
    """The envelope with a signature by each of the keys."""
    for key in keys:
        envelope = envelope.signed_by(key)
    return envelope


def load_keys(files: Sequence[Path], passphrase_file: Path | None) -> tuple[PrivateKey, ...]:
    """Private keys from files, those that are encrypted by one passphrase.

    Raises:
        KeyFileError: One can't be used.
        OSError: The passphrase can't be read.
    """
    passphrase = passphrase_file.read_bytes().rstrip(b"\r\n") if passphrase_file else None
    return tuple(PrivateKey.load(file, passphrase if b"ENCRYPTED" in _head(file) else None) for file in files)


def _head(file: Path) -> bytes:
    """The first line, where PEM says whether the file is encrypted; what is wrong with it is said when it is read."""
    try:
        return file.read_bytes().partition(b"\n")[0]
    except OSError:
        return b""
