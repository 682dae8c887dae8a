"""Texts that mean harm: refused with the right word, in bounded time."""

import random
import re

import pytest

from agent.definition import DocumentRejected, Limits, parse_domain, parse_file
from tests.definition.samples import domain

BOMB = b"<!DOCTYPE d [<!ENTITY a 'lol'>" + b"".join(
    b"<!ENTITY %c '%s'>" % (n + 1, b"&%c;" % n * 20) for n in b"abcdefgh"
)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "MalformedXml"),
        (b"<domain>", "MalformedXml"),
        (b"<domain/><domain/>", "MalformedXml"),
        (b"<domain>\0</domain>", "MalformedXml"),
        (b"<domain>\x01</domain>", "MalformedXml"),
        (b"<domain>&x;</domain>", "MalformedXml"),
        (b"<domain>&#0;</domain>", "MalformedXml"),
        (BOMB + b"]><domain><name>&i;</name></domain>", "DoctypeForbidden"),
        (BOMB + b"]><domain id='&i;'/>", "DoctypeForbidden"),
        (b"<!DOCTYPE domain><domain/>", "DoctypeForbidden"),
        (b"<!DOCTYPE d SYSTEM 'file:///etc/passwd'><domain/>", "DoctypeForbidden"),
        (b"<!--x--> <?y?><!DOCTYPE d SYSTEM 'http://127.0.0.1:1/d'><domain/>", "DoctypeForbidden"),
        (b"\n<?xml version='1.0'?>\n<!DOCTYPE d [<!ENTITY % p SYSTEM 'p'> %p;]><domain/>", "DoctypeForbidden"),
        (b"<domain>\xff</domain>", "NotUtf8"),
        (b"<domain>\xed\xa0\x80</domain>", "NotUtf8"),
        ("<domain><name>web</name></domain>".encode("utf-16"), "NotUtf8"),
        (b"<?xml version='1.0' encoding='ISO-8859-1'?><domain/>", "NotUtf8"),
        (b"<?xml version='1.0' encoding='utf-7'?>+ADw-domain/+AD4-", "NotUtf8"),
        ("<domain><name>web</name></domain>".encode("utf-16-le"), "MalformedXml"),
        ("<domain><name>web</name></domain>".encode("utf-32"), "NotUtf8"),
        (b"<domain>\xc0\xaf</domain>", "NotUtf8"),
        (b"<?xml version='1.0' encoding='IBM037'?><domain/>", "NotUtf8"),
        (b"<?xml version='1.0' a='>' encoding='UTF-7'?><domain/>", "MalformedXml"),
        (
            b"<?xml version='1.0' a='>'?><!DOCTYPE d [<!ENTITY x SYSTEM '/etc/passwd'>]><domain>&x;</domain>",
            "DoctypeForbidden",
        ),
        (b"<!-- a -- b --><!DOCTYPE d []><domain/>", "DoctypeForbidden"),
        (b"<domain/><!DOCTYPE d []>", "MalformedXml"),
        (b"<domain a='1' a='2'/>", "MalformedXml"),
        (b"<domain>&#xd800;</domain>", "MalformedXml"),
        (b"<domain xmlns='urn:x'/>", "NotADomain"),
        (b"<x:domain xmlns:x='urn:x'/>", "NotADomain"),
        (b"<domain xmlns:x='urn:x' x:a='1' xmlns:y='urn:x' y:a='2'/>", "MalformedXml"),
        (b"<a>" * 100_000 + b"</a>" * 100_000, "DocumentTooLarge"),
        (b"<a>" * 20_000 + b"</a>" * 20_000, "TooDeep"),
        (b"<domain>" + b"<a>" * 64 + b"</a>" * 64 + b"</domain>", "TooDeep"),
        (domain(*["<disk/>"] * 100_000), "DocumentTooLarge"),
        (domain(*["<disk/>"] * 10_000), "TooManyDisks"),
        (domain(*["<a/>"] * 30_000), "DocumentTooLarge"),
        (domain(f"<disk type='{'a' * 10_000_000}'/>"), "DocumentTooLarge"),
        *(
            (domain(name=name), "InvalidName")
            for name in ("a/b", "..", ".hidden", "a&#10;b", "a" * 300, "\u0430dmin", "a+b", "#", "a\u202eb", "a&#9;b")
        ),
    ],
)
def test_hostile_document(document: bytes, reason: str) -> None:
    with pytest.raises(DocumentRejected) as rejected:
        parse_domain(document)
    (finding,) = rejected.value.findings
    assert finding.reason == reason
    assert finding.message


def test_what_looks_odd_but_is_fine() -> None:
    for document in (
        b"\xef\xbb\xbf" + domain(),
        b"\n\n  <?xml version='1.0' encoding='UTF-8' standalone='yes'?>\n" + domain(),
        b"<!-- <!DOCTYPE d> -->" + domain(),
        domain().replace(b"<devices>", b"<description><![CDATA[<!DOCTYPE d>]]></description><devices>"),
        domain().replace(b"kvm'", b"kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"),
    ):
        assert parse_domain(document).name == "web"


def test_a_byte_order_mark_is_no_part_of_a_configuration_file() -> None:
    assert parse_file(b"\xef\xbb\xbfname = 'web'")[0].name == "web"


def test_the_second_lock_on_doctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.definition.document._DOCTYPE", re.compile(rb"(?!)"))
    with pytest.raises(DocumentRejected) as rejected:
        parse_domain(b"<!DOCTYPE domain><domain/>")
    assert rejected.value.findings[0].reason == "DoctypeForbidden"


def test_lines_count_from_the_documents_own_first_line() -> None:
    text = b"\n\n<?xml version='1.0'\n?>\n" + domain("<disk/>")
    assert parse_domain(text).disks[0].line == 6


def test_nothing_is_included_and_no_file_is_read() -> None:
    include = "<xi:include xmlns:xi='http://www.w3.org/2001/XInclude' href='/etc/passwd' parse='text'/>"
    found = parse_domain(domain(f"<disk><source file='/a'/><target dev='a'/>{include}</disk>")).disks[0]
    assert found.unknown == ("{http://www.w3.org/2001/XInclude}include",)


def test_names_of_other_namespaces_say_nothing() -> None:
    other = "<q:source file='/etc/shadow'/><q:readonly/>"
    text = f"<disk xmlns:q='urn:q' q:type='network' q:device='lun'>{other}<source file='/a'/><target dev='a'/></disk>"
    found = parse_domain(domain(text)).disks[0]
    assert (found.type, found.device, found.source, found.read_only) == ("file", "disk", "/a", False)
    assert found.unknown == ("@{urn:q}type", "@{urn:q}device", "{urn:q}source", "{urn:q}readonly")


MIB = 1 << 20
SLOW = {
    "comments": b"<!--a-->" * (MIB // 8 - 9) + b"<",
    "instructions": b"<?a?>" * (MIB // 5 - 9) + b"<!DOC",
    "declaration": b"<?xml " + b" encoding=" * (MIB // 10 - 9) + b"?>",
    "children": domain("<disk>" + "<a/>" * (MIB // 4 - 99) + "</disk>"),
    "drivers": domain("<disk>" + "<driver/>" * (MIB // 9 - 99) + "</disk>"),
    "disks": domain("<disk/>" * (MIB // 8)),
    "prefixes": domain("<disk><source file='" + "tap:" * (MIB // 4 - 200) + "'/></disk>"),
    "number": domain("<disk><blockio logical_block_size='" + "1" * (MIB - 300) + "'/></disk>"),
    "open quotes": b'\\"""' * (MIB // 4 - 1),
    "open strings": b'\\"' * (MIB // 2 - 1),
    "brackets": b"[" * (MIB - 1),
    "assignments": b"a=1;" * (MIB // 4 - 1),
    "list": b"name='x'\ndisk=[" + b"'a'," * (MIB // 4 - 9) + b"]",
    "commas": b"name='x'\ndisk=['" + b"," * (MIB - 40) + b"']",
    "parentheses": b"(a)" * (MIB // 3),
    "words": b"(" + b"\n'a'" * (MIB // 4 - 9),
    "noise": random.Random(1).randbytes(MIB // 2).hex().encode(),
}


@pytest.mark.timeout(120)  # 0.1 s at rest; what grows with the square of the length takes hours
@pytest.mark.parametrize("document", SLOW.values(), ids=SLOW.keys())
def test_a_mebibyte_takes_bounded_time(document: bytes) -> None:
    assert len(document) <= MIB
    for limits in (Limits(), Limits(max_bytes=MIB)):
        try:
            guests = parse_file(document, limits=limits)
        except DocumentRejected:
            guests = []
        assert not any(found.spec for guest in guests for found in guest.disks)
