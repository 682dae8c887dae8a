"""Signed envelopes: DSSE, the Dead Simple Signing Envelope, protocol version 1.0.2.

See https://github.com/secure-systems-lab/dsse: protocol.md for what is signed, envelope.md for the JSON around it. What
is inside an envelope is nobody's business here.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from agent.definition import DocumentRejected, Finding
from agent.trust.keys import PublicKey
from reconcilers.reason import Reason

if TYPE_CHECKING:
    from agent.trust.private_key import PrivateKey

MEDIA_TYPE = "application/vnd.dsse+json"
"""Of an envelope itself."""

SIGNATURES_MAX = 16
"""In one envelope; looked at before any is verified."""

ATTEMPTS_MAX = 64
"""Verifications that one envelope may cost, some 0.1 ms each; more than one only where a key id tells nothing."""

SIGNATURE_BYTES = 64


SCHEMA = {
    "title": "Envelope",
    "type": "object",
    "required": ["payload", "payloadType", "signatures"],
    "properties": {
        "payload": {"type": "string", "contentEncoding": "base64"},
        "payloadType": {"type": "string"},
        "signatures": {
            "type": "array",
            "minItems": 1,
            "maxItems": SIGNATURES_MAX,
            "items": {
                "type": "object",
                "required": ["sig"],
                "properties": {
                    "keyid": {"type": ["string", "null"]},
                    "sig": {"type": "string", "contentEncoding": "base64"},
                },
            },
        },
    },
}
"""The JSON Schema of what `read_envelope` reads."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature; `keyid` is a hint which key may have made it, and proves nothing."""

    keyid: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """Bytes, what kind of bytes they are, and signatures over both."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...] = ()

    @property
    def signed_bytes(self) -> bytes:
        """What the signatures are over."""
        return pae(self.payload_type.encode(), self.payload)

    def signers(self, keys: Iterable[PublicKey]) -> frozenset[PublicKey]:
        """Which of the keys have signed; each counts once, however many signatures it made.

        Raises:
            DocumentRejected: SignatureInvalid, for it would take too many attempts to find out.
        """
        trusted = tuple(keys)
        candidates = [(signature, _candidates(signature, trusted)) for signature in self.signatures]
        if sum(len(tried) for _, tried in candidates) > ATTEMPTS_MAX:
            _reject(
                f"{len(candidates)} signatures would have to be tried with every key; name each one's key by its id",
                "/signatures",
            )
        message = self.signed_bytes
        return frozenset(
            key for signature, tried in candidates for key in tried if key.verifies(signature.value, message)
        )

    def signed_by(self, key: "PrivateKey") -> "Envelope":
        """The envelope with the key's signature, in the place of one that names the same key."""
        others = tuple(one for one in self.signatures if one.keyid != key.public.id)
        mine = Signature(key.public.id, key.sign(self.signed_bytes))
        return replace(self, signatures=(*others, mine))

    def as_json(self) -> dict[str, object]:
        """The JSON envelope."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [
                {"keyid": one.keyid, "sig": base64.b64encode(one.value).decode()} for one in self.signatures
            ],
        }

    def encode(self) -> bytes:
        """The JSON envelope as it goes on the bus."""
        return json.dumps(self.as_json()).encode()


def pae(payload_type: bytes, payload: bytes) -> bytes:
    """The pre-authentication encoding of protocol.md: what is signed, with no two readings."""
    return b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type, len(payload), payload)


def is_envelope(parsed: object) -> bool:
    """Whether parsed JSON is meant as an envelope, a broken one included."""
    return isinstance(parsed, dict) and ("payloadType" in parsed or {"payload", "signatures"} <= parsed.keys())


def read_envelope(parsed: object) -> Envelope:
    """The envelope that parsed JSON is. Fields that the specification does not have are ignored, as it wants.

    Raises:
        DocumentRejected: SignatureInvalid, with the JSON pointer of what is wrong.
    """
    if not isinstance(parsed, dict):
        _reject("an envelope is a JSON object", "")
    payload = _bytes(parsed.get("payload"), "/payload")
    payload_type = _text(parsed.get("payloadType"), "/payloadType")
    signatures = parsed.get("signatures")
    if not isinstance(signatures, list) or not signatures:
        _reject("it must be a list with at least one signature", "/signatures")
    if len(signatures) > SIGNATURES_MAX:
        _reject(f"there are {len(signatures)} signatures; {SIGNATURES_MAX} are allowed", "/signatures")
    return Envelope(payload_type, payload, tuple(_signatures(signatures)))


def _signatures(items: Iterable[object]) -> Iterator[Signature]:
    for number, item in enumerate(items):
        place = f"/signatures/{number}"
        if not isinstance(item, Mapping):
            _reject("a signature is a JSON object with keyid and sig", place)
        value = _bytes(item.get("sig"), f"{place}/sig")
        if len(value) != SIGNATURE_BYTES:
            _reject(f"it has {len(value)} bytes, and an Ed25519 signature {SIGNATURE_BYTES}", f"{place}/sig")
        yield Signature(_text(item.get("keyid") or "", f"{place}/keyid"), value)


def _candidates(signature: Signature, keys: tuple[PublicKey, ...]) -> tuple[PublicKey, ...]:
    """The key that the hint names, or all: signers may name their keys as they like."""
    return tuple(key for key in keys if key.id == signature.keyid) or keys


def _bytes(value: object, place: str) -> bytes:
    """Base64, standard or URL-safe, and only the one spelling that encoding again would give."""
    text = _text(value, place)
    try:
        standard = text.translate(str.maketrans("-_", "+/"))
        decoded = base64.b64decode(standard, validate=True)
    except (binascii.Error, ValueError):
        _reject("it is no base64", place)
    if text not in (base64.b64encode(decoded).decode(), base64.urlsafe_b64encode(decoded).decode()):
        _reject("it is base64 with stray bits or mixed alphabets, which can be spelled in more than one way", place)
    return decoded


def _text(value: object, place: str) -> str:
    if not isinstance(value, str):
        _reject("it must be a text", place)
    return value


def _reject(message: str, place: str) -> NoReturn:
    raise DocumentRejected(Finding(Reason.SIGNATURE_INVALID, f"the signed envelope is broken: {message}", place, None))
