"""The envelope against its specification (github.com/secure-systems-lab/dsse, 1.0.2) and against forgers."""

import base64
import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition import DocumentRejected
from agent.strict_json import read_json
from agent.trust.dsse import ATTEMPTS_MAX, SIGNATURES_MAX, Envelope, Signature, pae, read_envelope
from agent.trust.private_key import PrivateKey
from reconcilers.reason import Reason

A, B, C = PrivateKey.new(), PrivateKey.new(), PrivateKey.new()
HELLO = Envelope("http://example.com/HelloWorld", b"hello world")


def test_what_is_signed_is_the_specifications_example() -> None:
    assert pae(b"http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("ä".encode(), b"") == b"DSSEv1 2 \xc3\xa4 0 "


@given(st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=20))
def test_no_two_contents_are_signed_alike(type_1: bytes, body_1: bytes, type_2: bytes, body_2: bytes) -> None:
    assert (pae(type_1, body_1) == pae(type_2, body_2)) == ((type_1, body_1) == (type_2, body_2))


def test_openssl_agrees(tmp_path: Path) -> None:
    key, message, signature = tmp_path / "key", tmp_path / "message", tmp_path / "signature"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    key.chmod(0o600)
    message.write_bytes(HELLO.signed_bytes)
    sign = f"openssl pkeyutl -sign -rawin -inkey {key} -in {message} -out {signature}"
    subprocess.run(sign.split(), check=True)
    mine = PrivateKey.load(key)
    theirs = Envelope(HELLO.payload_type, HELLO.payload, (Signature("", signature.read_bytes()),))
    assert theirs.signers([mine.public]) == {mine.public}
    assert HELLO.signed_by(mine).signatures[0].value == signature.read_bytes()


def test_an_envelope_comes_back_as_it_was() -> None:
    envelope = HELLO.signed_by(A).signed_by(B)
    assert read_envelope(read_json(envelope.encode().decode())) == envelope
    assert envelope.signers([A.public, B.public, C.public]) == {A.public, B.public}


def test_both_alphabets_and_unknown_fields_are_taken() -> None:
    envelope = Envelope("t", b"\xfb\xff\xfe").signed_by(A)
    table: dict[str, Any] = envelope.as_json() | {"more": 1}
    table["payload"] = base64.urlsafe_b64encode(envelope.payload).decode()
    table["signatures"] = [{"sig": base64.urlsafe_b64encode(envelope.signatures[0].value).decode(), "more": 1}]
    assert read_envelope(table).signers([A.public]) == {A.public}


def test_a_key_counts_once_however_often_it_signs() -> None:
    twice = Envelope("t", b"x", tuple(Signature(name, A.sign(pae(b"t", b"x"))) for name in ("", "a", A.public.id)))
    assert twice.signers([A.public, B.public]) == {A.public}


def test_the_key_id_proves_nothing() -> None:
    lie = Envelope("t", b"x", (Signature(A.public.id, C.sign(pae(b"t", b"x"))),))
    assert lie.signers([A.public, B.public]) == frozenset()
    odd = Envelope("t", b"x", (Signature("alice@example.net", A.sign(pae(b"t", b"x"))),))
    assert odd.signers([A.public, B.public]) == {A.public}


@pytest.mark.parametrize(
    "forged",
    [
        Envelope("t", b"y", (Signature("", A.sign(pae(b"t", b"x"))),)),
        Envelope("u", b"x", (Signature("", A.sign(pae(b"t", b"x"))),)),
        Envelope("t", b"x", (Signature("", A.sign(b"x")),)),
        Envelope("t", b"x", (Signature("", b"\0" * 64),)),
    ],
)
def test_a_signature_is_good_for_its_bytes_and_their_kind_alone(forged: Envelope) -> None:
    assert forged.signers([A.public]) == frozenset()


def test_a_signature_has_one_form_only() -> None:
    """With the group's order added to its second half, a lax verifier takes it as well (RFC 8032, 5.1.7)."""
    good = A.sign(pae(b"t", b"x"))
    order = 2**252 + 27742317777372353535851937790883648493
    other = good[:32] + (int.from_bytes(good[32:], "little") + order).to_bytes(32, "little")
    assert Envelope("t", b"x", (Signature("", good),)).signers([A.public])
    assert not Envelope("t", b"x", (Signature("", other),)).signers([A.public])


GOOD = HELLO.signed_by(A).as_json()
SIGNATURE = {"sig": base64.b64encode(b"\0" * 64).decode()}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"payload": None}, "/payload"),
        ({"payload": 5}, "/payload"),
        ({"payload": "aGVsbG8"}, "/payload"),
        ({"payload": "aGVsbG8=\n"}, "/payload"),
        ({"payload": "aGVsbG9="}, "/payload"),  # the last bits are not zero
        ({"payload": "+_+_"}, "/payload"),
        ({"payload": "hällo"}, "/payload"),
        ({"payloadType": None}, "/payloadType"),
        ({"payloadType": ["x"]}, "/payloadType"),
        ({"signatures": []}, "/signatures"),
        ({"signatures": {}}, "/signatures"),
        ({"signatures": [SIGNATURE] * (SIGNATURES_MAX + 1)}, "/signatures"),
        ({"signatures": ["x"]}, "/signatures/0"),
        ({"signatures": [{}]}, "/signatures/0/sig"),
        ({"signatures": [SIGNATURE, {"sig": "AAAA"}]}, "/signatures/1/sig"),
        ({"signatures": [SIGNATURE | {"keyid": 7}]}, "/signatures/0/keyid"),
    ],
)
def test_a_broken_envelope_is_named_with_its_place(change: dict[str, Any], place: str) -> None:
    with pytest.raises(DocumentRejected) as caught:
        read_envelope(GOOD | change)
    (finding,) = caught.value.findings
    assert (finding.reason, finding.path) == (Reason.SIGNATURE_INVALID, place)


def test_a_field_that_stands_twice_is_no_envelope() -> None:
    text = json.dumps(GOOD)[:-1] + ', "payload": "AAAA"}'
    with pytest.raises(DocumentRejected) as caught:
        read_json(text)
    assert caught.value.findings[0].reason is Reason.MALFORMED_JSON


def test_many_signatures_without_a_hint_cost_a_bounded_number_of_attempts() -> None:
    keys = [PrivateKey.new().public for _ in range(ATTEMPTS_MAX // SIGNATURES_MAX + 1)]
    flood = Envelope("t", b"x", (Signature("", b"\0" * 64),) * SIGNATURES_MAX)
    assert flood.signers(keys[:-1]) == frozenset()
    with pytest.raises(DocumentRejected, match="have to be tried"):
        flood.signers(keys)


@given(
    st.recursive(
        st.none() | st.text(max_size=5) | st.integers(),
        lambda x: (
            st.lists(x) | st.dictionaries(st.sampled_from(["payload", "payloadType", "signatures", "sig", "keyid"]), x)
        ),
        max_leaves=12,
    )
)
def test_anything_is_read_or_rejected(parsed: object) -> None:
    with suppress(DocumentRejected):
        assert not read_envelope(parsed).signers([A.public])
