"""Trust statements: by one, the keys in force say which keys are in force from then on, and until when that is fresh.

They stand on the fleet's topic `trust`, retained, as a list of envelopes in the order of their versions, so that a host
that was away, or is new, can follow from the keys that it knows to those of today.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agent.definition import DocumentRejected, Finding
from agent.strict_json import read_json
from agent.trust.dsse import Envelope, is_envelope, read_envelope
from agent.trust.keys import KEYS_MAX, PublicKey
from reconcilers.reason import Reason

PAYLOAD_TYPE = "application/vnd.tapster.trust+json"
"""No signed document can pass for a statement, nor the other way: the type is signed with the rest."""

CHAIN_MAX = 64
"""Statements on the topic. One whose keys are those of the one before it can be left out of the chain later."""

VERSION_MAX = 2**63 - 1


class TrustStatement(BaseModel):
    """What the keys in force say about the keys to come. Types are strict.

    Attributes:
        fleet: The fleet that it is for.
        version: Higher than that of every statement before it.
        threshold: How many of the keys must sign a document or the next statement.
        keys: The keys in force from now on, as PEM; each once.
        expires: When it is time for hosts to wonder why they have heard nothing newer (RFC 3339, with an offset).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    fleet: str
    version: Annotated[int, Field(ge=1, le=VERSION_MAX)]
    threshold: Annotated[int, Field(ge=1, le=KEYS_MAX)]
    keys: Annotated[tuple[str, ...], Field(min_length=1, max_length=KEYS_MAX)]
    expires: AwareDatetime

    @field_validator("keys")
    @classmethod
    def _readable(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        read = {PublicKey.from_pem(key.encode()) for key in keys}
        if len(read) < len(keys):
            raise ValueError("a key stands there twice")
        return keys

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.threshold > len(self.keys):
            raise ValueError(f"{self.threshold} of {len(self.keys)} keys can never sign")
        return self

    @property
    def public_keys(self) -> frozenset[PublicKey]:
        """The keys, read."""
        return frozenset(PublicKey.from_pem(key.encode()) for key in self.keys)

    def envelope(self) -> Envelope:
        """The statement, to be signed."""
        return Envelope(PAYLOAD_TYPE, self.model_dump_json().encode())


def read_statement(envelope: Envelope) -> TrustStatement:
    """What is in an envelope, without a look at its signatures.

    Raises:
        DocumentRejected: InvalidDocument; it is no trust statement.
    """
    if envelope.payload_type != PAYLOAD_TYPE:
        why = f"its payloadType is {envelope.payload_type[:80]!r}, and a trust statement's is {PAYLOAD_TYPE!r}"
        raise DocumentRejected(Finding(Reason.INVALID_DOCUMENT, why, "/payloadType", None))
    try:
        read_json(envelope.payload.decode())
        return TrustStatement.model_validate_json(envelope.payload)
    except UnicodeDecodeError as error:
        raise DocumentRejected(Finding(Reason.NOT_UTF8, "the statement is not UTF-8", "/payload", None)) from error
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f"/{part}" for part in problem["loc"])[:80]
        raise DocumentRejected(Finding(Reason.INVALID_DOCUMENT, problem["msg"][:200], place, None)) from error


def read_chain(payload: bytes, *, max_bytes: int) -> list[Envelope]:
    """The envelopes on the trust topic, in the order in which they stand there; a single one need not be in a list.

    Raises:
        DocumentRejected: It is too large, no JSON, or no list of envelopes.
    """
    if len(payload) > max_bytes:
        why = f"the trust topic has {len(payload)} bytes; {max_bytes} are allowed (limits.document_bytes)"
        raise DocumentRejected(Finding(Reason.DOCUMENT_TOO_LARGE, why, "", None))
    try:
        parsed = read_json(payload.decode())
    except UnicodeDecodeError as error:
        raise DocumentRejected(Finding(Reason.NOT_UTF8, "the trust topic is not UTF-8", "", None)) from error
    links = [parsed] if is_envelope(parsed) else parsed
    if not isinstance(links, list) or not 0 < len(links) <= CHAIN_MAX:
        why = f"the trust topic holds a list of 1 to {CHAIN_MAX} signed envelopes"
        raise DocumentRejected(Finding(Reason.INVALID_DOCUMENT, why, "", None))
    return [read_envelope(link) for link in links]


def encode_chain(envelopes: Iterable[Envelope]) -> bytes:
    """The chain as it goes on the trust topic."""
    return json.dumps([envelope.as_json() for envelope in envelopes]).encode()


def extended(chain: Sequence[Envelope], link: Envelope) -> list[Envelope]:
    """The chain with a link more, without the statement before it if that changed no keys and so leads nowhere."""
    kept = list(chain)
    if len(kept) > 1 and _same_keys(read_statement(kept[-2]), read_statement(kept[-1])):
        del kept[-1]
    return [*kept, link]


def _same_keys(one: TrustStatement, other: TrustStatement) -> bool:
    return (one.public_keys, one.threshold) == (other.public_keys, other.threshold)


def utc(moment: datetime) -> str:
    """A moment for people and logs, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
