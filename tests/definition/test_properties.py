"""What holds for every text, sensible or not."""

import re
from xml.sax.saxutils import quoteattr

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.definition import DocumentRejected, GuestDefinition, parse_domain, parse_each, parse_file
from agent.definition.canonical import canonical
from agent.definition.classification import TABLE
from agent.definition.driver import UNSERVED_FORMATS, WORDS
from reconcilers.spec import GUEST_NAME, TARGET_NAME, Backend, DiskSpec, Format
from reconcilers.tuning import LIMITS

WORD = st.sampled_from([*sorted(WORDS | UNSERVED_FORMATS), "", "odd"])
TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=8
)
VALUE = st.one_of(
    st.sampled_from(
        ["yes", "none", "directsync", "optional", "storage", "0x200", "010", "4096", "file", "block", "lun"]
    ),
    st.sampled_from(
        ["disk", "cdrom", "floppy", "vda", "hdc:cdrom", "ioemu:hda", "tap:aio:/a", "phy:sda", "/a", "../b"]
    ),
    WORD,
    st.builds("{}:{}".format, WORD, WORD),
    TEXT,
)
NAMES = sorted({part.lstrip("@") for name in TABLE for part in name.split("/")})
ATTRIBUTES = st.dictionaries(st.sampled_from([*NAMES, "unheard"]), VALUE, max_size=5)


def _element(name: str, attributes: dict[str, str], children: list[str]) -> str:
    written = "".join(f" {key}={quoteattr(value)}" for key, value in attributes.items())
    return f"<{name}{written}>{''.join(children)}</{name}>"


LEAF = st.builds(_element, st.sampled_from([*NAMES, "unheard"]), ATTRIBUTES, st.just([]))
NODE = st.builds(_element, st.sampled_from([*NAMES, "slices", "slice"]), ATTRIBUTES, st.lists(LEAF, max_size=3))
USUAL = st.builds(
    "<target dev={}/><source file={}/><driver name={} type={}/>".format,
    *(st.builds(quoteattr, values) for values in (VALUE, VALUE, WORD, WORD)),
)
DISK = st.builds(lambda attributes, usual, nodes: _element("disk", attributes, [usual, *nodes]),
                 ATTRIBUTES, st.one_of(USUAL, st.just("")), st.lists(NODE, max_size=4))  # fmt: skip
DOMAIN = st.builds(
    lambda name, disks: f"<domain><name>{name}</name><devices>{''.join(disks)}</devices></domain>".encode(),
    st.sampled_from(["web", "db 1", "a/b"]),
    st.lists(DISK, max_size=4),
)
PATH = TEXT.map(lambda text: f"/i/{text}")
RATES = [name for name in LIMITS if name.endswith("_sec") and name != "size_iops_sec"]
SIZE = st.integers(min_value=1, max_value=2**63 - 1)


@st.composite
def sensible_disk(draw: st.DrawFn, target: str) -> str:
    """A disk that is most likely served, with every setting that its spec has."""
    kind, attribute = draw(st.sampled_from([("file", "file"), ("block", "dev")]))
    device = draw(st.sampled_from(["disk", "disk", "cdrom", "floppy", "lun"]))
    driver = draw(st.sampled_from(["", "name='phy'", "name='tap'", "name='qemu' type='qcow2'", "type='vpc'"]))
    cache = draw(st.sampled_from(["none", "writeback", "writethrough", "directsync", "unsafe", "default"]))
    io = draw(st.sampled_from(["threads", "native", "io_uring"]))
    zeroes = f"discard='{draw(st.sampled_from(['unmap', 'ignore']))}' "
    zeroes += f"detect_zeroes='{draw(st.sampled_from(['off', 'on', 'unmap']))}'"
    limit, rate = draw(st.integers(1 << 16, 10**15)), draw(st.sampled_from(RATES))
    source = {attribute: draw(PATH), "startupPolicy": draw(st.sampled_from(["mandatory", "requisite", "optional"]))}
    part = _element("slice", {"type": "storage", "offset": str(draw(SIZE)), "size": str(draw(SIZE))}, [])
    optional = [
        f"<driver {driver} cache='{cache}' io='{io}' {zeroes if draw(st.booleans()) else ''}/>",
        _element("iotune", {}, [f"<{rate}>{limit}</{rate}>", f"<{rate}_max>{limit}</{rate}_max>"]),
        _element("source", source, [f"<slices>{part}</slices>"] if draw(st.booleans()) else []),
        f"<blockio logical_block_size='{draw(st.sampled_from([512, 4096]))}'/>",
        "<readonly/>",
        "<shareable/>",
        "<address type='pci'/>",
    ]
    children = draw(st.permutations([child for child in optional if draw(st.integers(0, 3))]))
    return _element("disk", {"type": kind, "device": device}, [*children, f"<target dev='{target}'/>"])


SENSIBLE_DOMAIN = st.builds(
    lambda *disks: f"<domain><name>web</name><devices>{''.join(disks)}</devices></domain>".encode(),
    *(sensible_disk(target) for target in ("vda", "hdb", "xvdc1")),
)
PIECE = st.one_of(
    st.builds("{}={}".format, st.sampled_from(["format", "vdev", "access", "target", "backendtype", "script"]), VALUE),
    st.sampled_from(["", "w", "r", "ro", "xvda", "hdc:cdrom", "cdrom", "discard", "tap:aio:/a", "phy:sda", "file:/a"]),
    VALUE,
)
CONFIGURATION = st.builds(
    lambda strings: f"name = 'web'\ndisk = {strings!r}\n".encode(),
    st.lists(st.builds(",".join, st.lists(PIECE, max_size=5)), max_size=4),
)


def _check(guest: GuestDefinition) -> None:
    """What the reconcilers may rely on, whatever the text was."""
    assert GUEST_NAME.fullmatch(guest.name)
    targets = [disk.spec.key.target for disk in guest.disks if disk.spec]
    assert len(targets) == len(set(targets))
    for disk in guest.disks:
        assert (disk.spec is None) == bool(disk.refused)
        for finding in disk.refused:
            assert finding.message
            assert finding.path
            assert finding.line
        if disk.spec is not None:
            _check_spec(disk.spec)


def _check_spec(spec: DiskSpec) -> None:
    assert TARGET_NAME.fullmatch(spec.key.target)
    assert (spec.source is None) == (spec.backend is None) == (spec.format is None)
    if spec.source is not None:
        assert spec.source.startswith("/")
        assert ".." not in spec.source.split("/")
        assert not re.search(r"[\x00-\x1f\x7f]", spec.source)
    assert (spec.format is Format.RAW) == (spec.backend in {Backend.LOOP, Backend.BLOCK})
    assert spec.slice_size != 0


@settings(max_examples=150, deadline=None)
@given(st.one_of(SENSIBLE_DOMAIN, DOMAIN, CONFIGURATION))
def test_what_is_accepted_is_safe_and_survives_the_round_trip(document: bytes) -> None:
    (guest,) = parse_each(document)
    if isinstance(guest, DocumentRejected):
        return
    _check(guest)
    text = canonical(guest)
    again = parse_domain(text)
    assert [disk.spec for disk in again.disks] == [disk.spec for disk in guest.disks if disk.spec is not None]
    assert again.complete
    assert again.name == guest.name
    assert canonical(again) == text


@settings(max_examples=150, deadline=None)
@given(DOMAIN)
def test_nothing_is_dropped_silently(document: bytes) -> None:
    """Every attribute of every disk element is in a list or in a finding."""
    try:
        guest = parse_domain(document)
    except DocumentRejected:
        return
    for written, disk in zip(re.findall(rb"<disk( [^<]*)?>", document), guest.disks, strict=False):
        names = {name.decode() for name in re.findall(rb" ([a-zA-Z_]+)=[\"']", written)}
        listed = {*disk.honoured, *disk.passed, *disk.unhonoured, *disk.unknown}
        assert {f"@{name}" for name in names} <= listed


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_read_or_rejected(document: bytes) -> None:
    for text in (
        document,
        b"<domain><name>web</name>" + document + b"</domain>",
        b"name='web'\ndisk=[" + document + b"]",
    ):
        for guest in parse_each(text):
            if isinstance(guest, DocumentRejected):
                assert guest.findings
            else:
                _check(guest)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_any_disk_string_is_read_or_refused(string: str) -> None:
    body = "".join(f"\\x{ord(char):02x}" if ord(char) < 256 else char for char in string)
    _check(parse_file(f"name = 'web'\ndisk = ['{body}']\n".encode("utf-8", "replace"))[0])
