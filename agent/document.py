"""What arrives on a desired topic, read into one frozen value or rejected with findings.

The forms are those of design §3: libvirt's domain XML as it is, JSON around it, and a signed envelope around that. The
XML inside is not looked at here; `agent.definition.parse_domain` does that with `body`.
"""

import hashlib
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from agent.bus.topics import Scope
from agent.definition import DocumentRejected, Finding, Limits
from agent.strict_json import read_json
from agent.trust.dsse import Envelope, is_envelope, read_envelope
from agent.trust.policy import Opener
from reconcilers.reason import Reason
from reconcilers.spec import GUEST_NAME

__all__ = [
    "GENERATION_MAX",
    "PAYLOAD_TYPE",
    "DesiredDocument",
    "JsonDocument",
    "Scope",
    "SignedDocument",
    "digest",
    "read_document",
]

GENERATION_MAX = 2**63 - 1
"""What a store can hold; JSON and MQTT could say more."""

PAYLOAD_TYPE = "application/vnd.tapster.desired+json"
"""Of a desired document in a signed envelope."""

FINDINGS_MAX = 20
"""One rejected document must not make a status of megabytes."""

PATH_MAX = 200
"""Nor must one field's name."""

_BOM = "\ufeff"
_DECIMAL = re.compile("[0-9]{1,19}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredDocument:
    """What an operator wants of one guest.

    Attributes:
        scope: The host or the group whose topic it came on.
        guest: The guest, as topic and document agree.
        generation: The operator's count of versions; None where arrival order decides.
        state: Whether the guest's disks shall be up or taken down.
        sha256: Hex digest of the payload's bytes as they arrived, which an operator can compute.
        body: The domain XML; empty for absent.
        signers: Ids of the keys in force that have signed it; none for an unsigned one.
    """

    scope: Scope
    guest: str
    generation: int | None
    state: Literal["present", "absent"]
    sha256: str
    body: bytes
    signers: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """Hex digest of what the document means: equal for the same XML sent as it is and inside JSON.

        Two documents of one generation are in conflict when this differs. Blanks around the
        XML, which an editor or a shell adds, make no difference; anything inside it does.
        """
        return digest(f"{self.state}\n".encode() + self.body.strip())


def digest(payload: bytes) -> str:
    """SHA-256 of a payload in lower-case hex, as `sha256sum` prints it."""
    return hashlib.sha256(payload).hexdigest()


def read_document(
    payload: bytes, *, scope: Scope, guest: str, properties: Mapping[str, str], limits: Limits, opener: Opener
) -> DesiredDocument:
    """Read the payload of a desired topic.

    Args:
        payload: What was published; not empty, since an empty payload withdraws a document.
        scope: The host or the group that the topic names.
        guest: The guest that the topic names.
        properties: The message's user properties. `generation` (decimal) counts versions where the payload does not;
            `sha256` (hex) is checked against the payload.
        limits: `max_bytes` is what the payload may have.
        opener: Judges the signatures of a signed envelope. That an unsigned document may count is not judged here.

    Raises:
        DocumentRejected: With all findings that can be made at once, at most 20. Paths are JSON pointers, empty for the
            whole, or `property generation` and `property sha256`.
    """
    if not GUEST_NAME.fullmatch(guest):
        raise _rejected(Reason.INVALID_NAME, f"the topic's last level {reprlib.repr(guest)} can't be a guest's name")
    read, signers = _read(_text(payload, limits), scope, guest, opener)
    desired, findings = (read, []) if isinstance(read, JsonDocument) else (None, read)
    findings += _property_findings(payload, properties, desired)
    if desired is None or findings:
        raise DocumentRejected(*findings[:FINDINGS_MAX])
    counted = properties.get("generation")
    return DesiredDocument(
        scope=scope,
        guest=guest,
        generation=desired.generation if counted is None else int(counted),
        state=desired.state,
        sha256=digest(payload),
        body=desired.body,
        signers=signers,
    )


class JsonDocument(BaseModel):
    """A desired document's JSON form. Types are strict: `"5"` and `true` are no generations."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    guest: str
    generation: Annotated[int, Field(ge=0, le=GENERATION_MAX)] | None = None
    state: Literal["present", "absent"]
    domain_xml: str | None = None

    @property
    def body(self) -> bytes:
        """The XML as the store keeps it: none for absent, even where the operator left it in."""
        return b"" if self.state == "absent" else (self.domain_xml or "").removeprefix(_BOM).encode()


class SignedDocument(JsonDocument):
    """What is inside a signed envelope: where it belongs is signed with it, and it must be counted.

    Attributes:
        fleet: The fleet.
        scope: `host:<name>` or `group:<name>`.
    """

    fleet: str
    scope: str
    generation: Annotated[int, Field(ge=0, le=GENERATION_MAX)]

    @staticmethod
    def binding(fleet: str, scope: Scope) -> dict[str, str]:
        """The fields that say where it belongs, for a place."""
        return {"fleet": fleet, "scope": f"{scope.kind}:{scope.name}"}


def _text(payload: bytes, limits: Limits) -> str:
    if len(payload) > limits.max_bytes:
        why = f"it has {len(payload)} bytes; {limits.max_bytes} are allowed (limits.document_bytes)"
        raise _rejected(Reason.DOCUMENT_TOO_LARGE, why)
    try:
        return payload.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        why = f"byte {error.start} (0x{payload[error.start]:02x}) is not UTF-8; save the document as UTF-8"
        raise _rejected(Reason.NOT_UTF8, why, line=payload.count(b"\n", 0, error.start) + 1) from error


def _read(text: str, scope: Scope, guest: str, opener: Opener) -> tuple[JsonDocument | list[Finding], tuple[str, ...]]:
    """What the text says, or all that is wrong with it; and who has signed it."""
    if not text.lstrip().startswith(("{", "[")):
        return JsonDocument(guest=guest, state="present", domain_xml=text), ()
    table = read_json(text)
    if is_envelope(table):
        envelope = read_envelope(table)
        signers = opener.signers(envelope)
        return _signed(envelope, SignedDocument.binding(opener.fleet, scope), guest), signers
    return _checked(JsonDocument, table, guest), ()


def _signed(envelope: Envelope, binding: Mapping[str, str], guest: str) -> JsonDocument | list[Finding]:
    """The document in an envelope whose signatures count."""
    if envelope.payload_type != PAYLOAD_TYPE:
        why = f"it is {reprlib.repr(envelope.payload_type)}, and a desired document's is {PAYLOAD_TYPE!r}"
        return [Finding(Reason.INVALID_DOCUMENT, why, "/payloadType", None)]
    try:
        table = read_json(envelope.payload.decode())
    except UnicodeDecodeError as error:
        raise _rejected(Reason.NOT_UTF8, f"byte {error.start} of the signed payload is not UTF-8") from error
    read = _checked(SignedDocument, table, guest)
    if isinstance(read, list):
        return read
    return [*_misplaced(read, binding)] or read


def _misplaced(document: JsonDocument, binding: Mapping[str, str]) -> Iterator[Finding]:
    for field, here in binding.items():
        if (signed := getattr(document, field)) != here:
            why = f"it was signed for {reprlib.repr(signed)}, and came to {here!r}; sign one for here"
            yield Finding(Reason.SCOPE_MISMATCH, why, f"/{field}", None)


def _checked(model: type[JsonDocument], table: object, guest: str) -> JsonDocument | list[Finding]:
    if not isinstance(table, dict):
        raise _rejected(Reason.INVALID_DOCUMENT, "the JSON is a list; a desired document is an object")
    try:
        desired = model.model_validate(table)
    except ValidationError as error:
        return [_finding(problem, model) for problem in error.errors(include_url=False)]
    return [*_contradictions(desired, guest)] or desired


def _contradictions(desired: JsonDocument, guest: str) -> Iterator[Finding]:
    if desired.guest != guest:
        named = reprlib.repr(desired.guest)
        why = f"the document is for {named} and the topic for {guest!r}; publish it on its own topic"
        yield Finding(Reason.NAME_MISMATCH, why, "/guest", None)
    if desired.state == "present" and not desired.domain_xml:
        why = "it is missing or empty, and state 'present' needs the guest's domain XML"
        yield Finding(Reason.INVALID_DOCUMENT, why, "/domain_xml", None)


def _finding(problem: ErrorDetails, model: type[JsonDocument]) -> Finding:
    """One problem of pydantic's as a finding, its path a JSON pointer."""
    path = "".join(f"/{part}" for part in problem["loc"])
    match problem["type"]:
        case "missing":
            why = "the field is missing"
        case "extra_forbidden":
            why = f"there is no such field; there are {', '.join(model.model_fields)}"
        case _:
            must = problem["msg"].replace("Input should be", "it must be")
            why = f"{must}, not {reprlib.repr(problem['input'])}"
    return Finding(Reason.INVALID_DOCUMENT, why, path[:PATH_MAX], None)


def _property_findings(
    payload: bytes, properties: Mapping[str, str], desired: JsonDocument | None
) -> Iterator[Finding]:
    counted = properties.get("generation")
    if counted is not None and not (_DECIMAL.fullmatch(counted) and int(counted) <= GENERATION_MAX):
        why = f"it must be a decimal number, 0 to {GENERATION_MAX}, not {reprlib.repr(counted)}"
        yield Finding(Reason.INVALID_DOCUMENT, why, "property generation", None)
    elif counted is not None and desired and desired.generation not in (None, int(counted)):
        why = f"it is {counted}, and the document says {desired.generation}; leave one of them out"
        yield Finding(Reason.INVALID_DOCUMENT, why, "property generation", None)
    declared = properties.get("sha256")
    if declared is not None and declared.lower() != digest(payload):
        why = f"it is {reprlib.repr(declared)}, and the payload's is {digest(payload)}; publish the document again"
        yield Finding(Reason.DIGEST_MISMATCH, why, "property sha256", None)


def _rejected(reason: Reason, message: str, line: int | None = None) -> DocumentRejected:
    return DocumentRejected(Finding(reason, message, "", line))
