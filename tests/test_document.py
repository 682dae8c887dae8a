"""Desired documents: the forms that are read, and every way to be rejected."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition import DocumentRejected, Finding, Limits
from agent.document import GENERATION_MAX, DesiredDocument, Scope, read_document
from agent.trust.policy import Unchecked
from reconcilers.reason import Reason

SCOPE = Scope("host", "db1")
LIMITS = Limits()
XML = "<domain type='xen'>\n  <name>vm1</name>\n</domain>\n"


def read(payload: bytes, guest: str = "vm1", limits: Limits = LIMITS, **properties: str) -> DesiredDocument:
    return read_document(
        payload, scope=SCOPE, guest=guest, properties=properties, limits=limits, opener=Unchecked("lab")
    )


def as_json(**fields: object) -> bytes:
    return json.dumps({"guest": "vm1", "generation": 3, "state": "present", "domain_xml": XML} | fields).encode()


def findings(payload: bytes, guest: str = "vm1", **properties: str) -> tuple[Finding, ...]:
    with pytest.raises(DocumentRejected) as caught:
        read(payload, guest, LIMITS, **properties)
    return caught.value.findings


def test_raw_xml_is_taken_as_it_is() -> None:
    document = read(XML.encode())
    assert document == DesiredDocument(
        scope=SCOPE,
        guest="vm1",
        generation=None,
        state="present",
        sha256=hashlib.sha256(XML.encode()).hexdigest(),
        body=XML.encode(),
    )


def test_properties_count_raw_xml_and_prove_it() -> None:
    sha256 = hashlib.sha256(XML.encode()).hexdigest()
    assert read(XML.encode(), generation="7", sha256=sha256.upper()).generation == 7


def test_a_byte_order_mark_is_left_out_and_the_digest_is_that_of_the_payload() -> None:
    payload = b"\xef\xbb\xbf" + XML.encode()
    document = read(payload)
    assert document.body == XML.encode()
    assert document.sha256 == hashlib.sha256(payload).hexdigest()


def test_json_carries_generation_and_xml() -> None:
    document = read(b" \n" + as_json())
    assert (document.generation, document.state, document.body) == (3, "present", XML.encode())


def test_absent_needs_no_xml_and_keeps_none() -> None:
    assert read(b'{"guest": "vm1", "state": "absent"}').body == b""
    assert read(as_json(state="absent")).body == b""


@pytest.mark.parametrize("form", [as_json(generation=None), b'{"guest": "vm1", "state": "absent"}'])
def test_the_property_counts_json_without_a_generation(form: bytes) -> None:
    assert read(form, generation="9").generation == 9


def test_the_same_xml_has_the_same_content_in_every_form() -> None:
    forms = [XML.encode(), XML.encode() + b"\n", b"\xef\xbb\xbf" + XML.encode(), as_json(), as_json(generation=4)]
    assert len({read(form).content for form in forms}) == 1
    assert len({read(form).sha256 for form in forms}) == len(forms)


def test_other_xml_and_absent_are_other_content() -> None:
    others = [XML.encode(), XML.replace("xen", "kvm").encode(), as_json(state="absent")]
    assert len({read(form).content for form in others}) == len(others)


def test_a_size_at_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    payload = XML.encode()
    assert read(payload, limits=Limits(max_bytes=len(payload)))
    with pytest.raises(DocumentRejected, match=rf"it has {len(payload)} bytes; {len(payload) - 1} are allowed"):
        read(payload, limits=Limits(max_bytes=len(payload) - 1))


@pytest.mark.parametrize(
    ("payload", "reason", "path", "line", "message"),
    [
        (b"<domain>\n\n<name>\xff", Reason.NOT_UTF8, "", 3, "byte 16 (0xff) is not UTF-8"),
        (XML.encode("utf-16"), Reason.NOT_UTF8, "", 1, "byte 0 (0xff) is not UTF-8"),
        (b'{"guest": "vm1",\n "state" present}', Reason.MALFORMED_JSON, "", 2, "Expecting ':' delimiter at column 10"),
        (b'{"guest": "vm1"', Reason.MALFORMED_JSON, "", 1, "Expecting"),
        (b'{"generation": NaN}', Reason.MALFORMED_JSON, "", None, "NaN is no JSON number"),
        (b'{"generation": ' + b"9" * 5000 + b"}", Reason.MALFORMED_JSON, "", None, "Exceeds the limit"),
        (b'{"a": ' * 100_000, Reason.MALFORMED_JSON, "", None, "recursion"),
        (b'{"guest": "vm1", "guest": "vm1"}', Reason.MALFORMED_JSON, "", None, "the field 'guest' stands twice"),
        (b"[]", Reason.INVALID_DOCUMENT, "", None, "the JSON is a list"),
        (as_json(generation="5"), Reason.INVALID_DOCUMENT, "/generation", None, "a valid integer, not '5'"),
        (as_json(generation=True), Reason.INVALID_DOCUMENT, "/generation", None, "a valid integer, not True"),
        (as_json(generation=5.0), Reason.INVALID_DOCUMENT, "/generation", None, "a valid integer, not 5.0"),
        (as_json(generation=-1), Reason.INVALID_DOCUMENT, "/generation", None, "greater than or equal to 0, not -1"),
        (as_json(generation=2**63), Reason.INVALID_DOCUMENT, "/generation", None, "less than or equal to"),
        (as_json(state="gone"), Reason.INVALID_DOCUMENT, "/state", None, "must be 'present' or 'absent', not 'gone'"),
        (as_json(domain_xml=["x"]), Reason.INVALID_DOCUMENT, "/domain_xml", None, "a valid string, not ['x']"),
        (as_json(domain_xml="\ud800"), Reason.NOT_UTF8, "", None, "half a character"),
        (b'{"\\udfff": 1}', Reason.NOT_UTF8, "", None, "half a character"),
        (as_json(domain_xml=None), Reason.INVALID_DOCUMENT, "/domain_xml", None, "state 'present' needs the guest's"),
        (as_json(domain_xml=""), Reason.INVALID_DOCUMENT, "/domain_xml", None, "it is missing or empty"),
        (as_json(fleet="x"), Reason.INVALID_DOCUMENT, "/fleet", None, "no such field; there are guest, generation"),
        (as_json(guest="vm2"), Reason.NAME_MISMATCH, "/guest", None, "for 'vm2' and the topic for 'vm1'"),
        (b'{"payloadType": "x"}', Reason.SIGNATURE_INVALID, "/payload", None, "signed envelope"),
        (b'{"payload": "", "signatures": []}', Reason.SIGNATURE_INVALID, "/payloadType", None, "signed envelope"),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_what_cannot_be_used_is_rejected_with_its_place(
    payload: bytes, reason: Reason, path: str, line: int | None, message: str
) -> None:
    with pytest.raises(DocumentRejected) as caught:
        read(payload, limits=Limits(max_bytes=2**20))
    (finding,) = caught.value.findings
    assert (finding.reason, finding.path, finding.line) == (reason, path, line)
    assert message in finding.message


@pytest.mark.parametrize("generation", ["", "-1", "five", "5.0", " 5", "1_000", "٣", str(2**63), "9" * 5000])
def test_a_generation_property_is_a_decimal_number_that_can_be_stored(generation: str) -> None:
    (finding,) = findings(XML.encode(), generation=generation)
    assert (finding.reason, finding.path) == (Reason.INVALID_DOCUMENT, "property generation")
    assert len(finding.message) < 200


def test_two_generations_must_agree() -> None:
    assert read(as_json(), generation="3").generation == 3
    (finding,) = findings(as_json(), generation="4")
    assert "it is 4, and the document says 3" in finding.message


@pytest.mark.parametrize("sha256", ["0" * 64, "", "x"])
def test_another_digest_is_a_mismatch(sha256: str) -> None:
    (finding,) = findings(XML.encode(), sha256=sha256)
    assert (finding.reason, finding.path) == (Reason.DIGEST_MISMATCH, "property sha256")


@pytest.mark.parametrize("guest", ["", "a/b", "+", ".hidden", "x" * 129, "vm\n"])
def test_a_topic_that_names_no_guest_is_rejected_for_absent_too(guest: str) -> None:
    (finding,) = findings(b'{"guest": "vm1", "state": "absent"}', guest)
    assert finding.reason is Reason.INVALID_NAME


def test_all_that_is_wrong_is_told_at_once() -> None:
    told = findings(b'{"guest": 1, "generation": "x", "colour": "red"}', generation="x", sha256="x")
    assert [finding.path for finding in told] == [
        "/guest",
        "/generation",
        "/state",
        "/colour",
        "property generation",
        "property sha256",
    ]


def test_a_hostile_document_makes_a_small_rejection() -> None:
    told = findings(as_json(**{f"{'x' * 900}{number}": "y" * 900 for number in range(100)}), sha256="z" * 10_000)
    assert len(told) == 20
    assert sum(len(finding.message) + len(finding.path) for finding in told) < 10_000


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_rejected(payload: bytes) -> None:
    try:
        document = read(payload)
    except DocumentRejected as rejected:
        assert rejected.findings  # noqa: PT017 - both outcomes are right
    else:
        assert document.body.decode() == payload.decode().removeprefix("\ufeff")


@given(st.text(min_size=1), st.integers(0, GENERATION_MAX))
def test_json_gives_back_what_was_put_in(xml: str, generation: int) -> None:
    document = read(as_json(domain_xml=xml, generation=generation))
    assert (document.body.decode(), document.generation) == (xml.removeprefix("\ufeff"), generation)
