"""What arrives on a desired topic, read into one frozen value or rejected with findings.

The forms are those of design §3: libvirt's domain XML as it is, JSON around it, and a signed envelope, which this
version rejects. The XML inside is not looked at here; `agent.definition.parse_domain` does that with `body`.
"""

import hashlib
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from agent.bus.topics import Scope
from agent.definition import DocumentRejected, Finding, Limits
from reconcilers.reason import Reason
from reconcilers.spec import GUEST_NAME

__all__ = ["GENERATION_MAX", "DesiredDocument", "JsonDocument", "Scope", "digest", "read_document"]

GENERATION_MAX = 2**63 - 1
"""What a store can hold; JSON and MQTT could say more."""

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
    """

    scope: Scope
    guest: str
    generation: int | None
    state: Literal["present", "absent"]
    sha256: str
    body: bytes

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
    payload: bytes, *, scope: Scope, guest: str, properties: Mapping[str, str], limits: Limits
) -> DesiredDocument:
    """Read the payload of a desired topic.

    Args:
        payload: What was published; not empty, since an empty payload withdraws a document.
        scope: The host or the group that the topic names.
        guest: The guest that the topic names.
        properties: The message's user properties. `generation` (decimal) counts versions where the payload does not;
            `sha256` (hex) is checked against the payload.
        limits: `max_bytes` is what the payload may have.

    Raises:
        DocumentRejected: With all findings that can be made at once, at most 20. Paths are JSON pointers, empty for the
            whole, or `property generation` and `property sha256`.
    """
    if not GUEST_NAME.fullmatch(guest):
        raise _rejected(Reason.INVALID_NAME, f"the topic's last level {reprlib.repr(guest)} can't be a guest's name")
    read = _read(_text(payload, limits), guest)
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


def _text(payload: bytes, limits: Limits) -> str:
    if len(payload) > limits.max_bytes:
        why = f"it has {len(payload)} bytes; {limits.max_bytes} are allowed (limits.document_bytes)"
        raise _rejected(Reason.DOCUMENT_TOO_LARGE, why)
    try:
        return payload.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        why = f"byte {error.start} (0x{payload[error.start]:02x}) is not UTF-8; save the document as UTF-8"
        raise _rejected(Reason.NOT_UTF8, why, line=payload.count(b"\n", 0, error.start) + 1) from error


def _read(text: str, guest: str) -> JsonDocument | list[Finding]:
    if not text.lstrip().startswith(("{", "[")):
        return JsonDocument(guest=guest, state="present", domain_xml=text)
    table = _parse_json(text)
    if not isinstance(table, dict):
        raise _rejected(Reason.INVALID_DOCUMENT, "the JSON is a list; a desired document is an object")
    if "payloadType" in table or {"payload", "signatures"} <= table.keys():
        raise _rejected(Reason.SIGNATURE_UNSUPPORTED, "it is a signed envelope (DSSE), which can't be verified yet")
    try:
        desired = JsonDocument.model_validate(table)
    except ValidationError as error:
        return [_finding(problem) for problem in error.errors(include_url=False)]
    return [*_contradictions(desired, guest)] or desired


def _contradictions(desired: JsonDocument, guest: str) -> Iterator[Finding]:
    if desired.guest != guest:
        named = reprlib.repr(desired.guest)
        why = f"the document is for {named} and the topic for {guest!r}; publish it on its own topic"
        yield Finding(Reason.NAME_MISMATCH, why, "/guest", None)
    if desired.state == "present" and not desired.domain_xml:
        why = "it is missing or empty, and state 'present' needs the guest's domain XML"
        yield Finding(Reason.INVALID_DOCUMENT, why, "/domain_xml", None)


def _parse_json(text: str) -> object:
    try:
        parsed: object = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
        json.dumps(parsed, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        why = f"{error.msg} at column {error.colno}"
        raise _rejected(Reason.MALFORMED_JSON, why, line=error.lineno) from error
    except UnicodeEncodeError as error:
        why = "an escape such as \\ud800 is half a character; write the character itself, as UTF-8"
        raise _rejected(Reason.NOT_UTF8, why) from error
    except (ValueError, RecursionError) as error:
        raise _rejected(Reason.MALFORMED_JSON, str(error)) from error
    return parsed


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the field {reprlib.repr(twice)} stands twice; keep one of them")
    return table


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _finding(problem: ErrorDetails) -> Finding:
    """One problem of pydantic's as a finding, its path a JSON pointer."""
    path = "".join(f"/{part}" for part in problem["loc"])
    match problem["type"]:
        case "missing":
            why = "the field is missing"
        case "extra_forbidden":
            why = f"there is no such field; there are {', '.join(JsonDocument.model_fields)}"
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
