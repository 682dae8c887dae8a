"""Domains as libvirt and its users write them."""

import pytest

from agent.definition import DocumentRejected, Limits, parse_domain
from reconcilers.spec import Device, DiskKey, DiskSpec, StartupPolicy
from tests.definition.samples import disk, domain, reasons

SLICE = (
    "<disk><source file='/a'><slices><slice type='storage' offset='{offset}' size='{size}'/></slices></source>"
    "<target dev='vda'/></disk>"
)


def test_everything_that_a_disk_can_ask_for_arrives_in_its_spec() -> None:
    found = disk("""
      <disk type='file' device='disk' snapshot='external'>
        <target dev='vdb' bus='virtio'/>
        <driver name='qemu' type='qcow2' cache='none' io='native' iothread='1' discard='unmap'/>
        <source file='/i/a.qcow2' startupPolicy='requisite' index='1'>
          <seclabel model='dac' relabel='no'/>
          <slices><slice type='storage' offset='0x1000' size='8192'/></slices>
        </source>
        <backingStore/>
        <blockio logical_block_size='010000' physical_block_size='4096'/>
        <iotune><total_iops_sec>100</total_iops_sec></iotune>
        <shareable/><readonly/>
        <serial>x</serial><wwn>0</wwn><boot order='1'/><alias name='ua-1'/>
        <address type='pci' bus='0x00'/>
        <sparkle/>
      </disk>""")
    assert reasons(found) == []
    assert found.spec == DiskSpec(
        key=DiskKey("web", "vdb"),
        source="/i/a.qcow2",
        backend=found.backend,
        format=found.format,
        read_only=True,
        shareable=True,
        direct_io=True,
        logical_block_size=4096,
        slice_offset=4096,
        slice_size=8192,
        startup_policy=StartupPolicy.REQUISITE,
        unhonoured=("driver/@io", "driver/@discard", "blockio/@physical_block_size", "iotune"),
    )
    assert {"@type", "driver/@cache", "source/slices", "blockio/@logical_block_size", "readonly"} <= set(found.honoured)
    assert {"@snapshot", "driver/@iothread", "source/seclabel", "address", "boot", "backingStore"} <= set(found.passed)
    assert found.unknown == ("sparkle",)


def test_a_cdrom_is_read_only_and_needs_no_medium() -> None:
    for source in ("", "<source/>", "<source file=''/>", "<source file='' startupPolicy='optional'/>"):
        found = disk(f"<disk device='cdrom'><driver name='qemu' type='raw'/>{source}<target dev='hdc'/></disk>")
        assert (found.device, found.read_only, reasons(found)) == (Device.CDROM, True, [])
        assert (found.source, found.backend, found.format) == (None, None, None)
        assert found.spec is not None
    floppy = disk("<disk type='block' device='floppy'><target dev='fda'/></disk>")
    assert (floppy.read_only, floppy.backend, reasons(floppy)) == (False, None, [])


def test_a_disk_without_source_is_refused() -> None:
    assert reasons(disk("<disk><source file=''/><target dev='vda'/></disk>")) == ["MissingSource"]
    assert reasons(disk("<disk type='block' device='lun'><target dev='sda'/></disk>")) == ["MissingSource"]


def test_the_first_source_and_target_win() -> None:
    found = disk("<disk><source file='/a'/><source file='/b'/><target dev='vda'/><target dev='vdb'/></disk>")
    assert (found.source, found.target, reasons(found)) == ("/a", "vda", [])
    assert found.unknown == ("source (another one; the first counts)", "target (another one; the first counts)")


def test_a_source_in_the_other_types_attribute_counts() -> None:
    found = disk("<disk type='block'><source file='/i/a.img'/><target dev='vda'/></disk>")
    assert (found.source, found.backend) == ("/i/a.img", "block")
    found = disk("<disk type='file'><source file='/a' dev='/dev/b'/><target dev='vda'/></disk>")
    assert found.source == "/a"


def test_devices_are_named_relative_to_dev() -> None:
    assert disk("<disk type='block'><source dev='sda8'/><target dev='vda'/></disk>").source == "/dev/sda8"
    assert disk("<disk><source file='phy:vg/a'/><target dev='vda'/></disk>").source == "/dev/vg/a"


def test_only_the_domains_own_disks_count() -> None:
    text = b"""<domain><name>web</name>
      <metadata><devices><disk><source file='/m'/></disk></devices></metadata>
      <devices>
        <disk><source file='/a'/><target dev='vda'/><metadata><disk/></metadata></disk>
        <filesystem><disk/></filesystem>
      </devices>
      <devices><disk><source file='/b'/><target dev='vdb'/></disk></devices>
    </domain>"""
    assert [found.source for found in parse_domain(text).disks] == ["/a", "/b"]


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("encryption", "format='luks'/>"),
        ("transient", "/>"),
        ("mirror", "file='/b'/>"),
        ("backingStore", "type='file'><format type='raw'/><source file='/b'/></backingStore>"),
        ("backenddomain", "name='storage'/>"),
        ("script", "path='/etc/xen/scripts/block-drbd'/>"),
    ],
)
def test_what_is_unsafe_to_ignore_is_refused(name: str, rest: str) -> None:
    found = disk(f"<disk>\n<source file='/a'/><target dev='vda'/>\n<{name} {rest}</disk>")
    assert reasons(found) == ["UnsupportedFeature"]
    assert found.refused[0].path == f"/domain/devices/disk[1]/{name}"
    assert found.refused[0].line == 4
    assert f"'{name}'" in found.refused[0].message
    assert (found.source, found.backend, found.spec) == ("/a", "loop", None)


@pytest.mark.parametrize(
    "source",
    [
        "<source file='/a'><encryption format='luks'/></source>",
        "<source file='/a'><dataStore type='file'><source file='/b'/></dataStore></source>",
        "<source file='/a'><reservations managed='yes'/></source>",
        "<source file='/a' fdgroup='x'/>",
        "<source file='/a'><slices><slice type='other' offset='0' size='512'/></slices></source>",
    ],
)
def test_a_source_that_is_more_than_a_path_is_refused(source: str) -> None:
    assert reasons(disk(f"<disk>{source}<target dev='vda'/></disk>")) == ["UnsupportedFeature"]


@pytest.mark.parametrize("inner", ["<backingStore/>", "<backenddomain name='dom0'/>", "<script path='/x/block'/>"])
def test_what_changes_nothing_is_not_refused(inner: str) -> None:
    found = disk(f"<disk><source file='/a'/><target dev='vda'/>{inner}</disk>")
    assert reasons(found) == []
    assert len(found.passed) == 1


@pytest.mark.parametrize("kind", ["network", "volume", "dir", "nvme", "vhostuser", "vdpa"])
def test_other_source_types_are_refused_once(kind: str) -> None:
    found = disk(
        f"<disk type='{kind}'><source protocol='rbd' name='p/i'><host name='m'/></source><target dev='vda'/></disk>"
    )
    assert reasons(found) == ["UnsupportedSource"]
    assert (found.type, found.source, found.backend) == (kind, None, None)


def test_a_lun_is_a_block_device() -> None:
    assert reasons(disk("<disk type='block' device='lun'><source dev='/dev/a'/><target dev='sda'/></disk>")) == []
    assert reasons(disk("<disk device='lun'><source file='/a'/><target dev='sda'/></disk>")) == ["NotALun"]
    qcow2 = "<disk type='block' device='lun'><driver type='qcow2'/><source dev='/dev/a'/><target dev='sda'/></disk>"
    assert reasons(disk(qcow2)) == ["NotALun"]


@pytest.mark.parametrize(
    "source", ["a.img", "/i/../etc/shadow", "/a&#10;b", "/a&#x9b;2J", "[store] a.vmdk", "/" + "a" * 4096]
)
def test_a_source_is_a_plain_absolute_path(source: str) -> None:
    assert reasons(disk(f"<disk><source file='{source}'/><target dev='vda'/></disk>")) == ["InvalidSource"]


@pytest.mark.parametrize("source", ["nbd:host:10809", "rbd:pool/image", "https://host/a.img"])
def test_a_source_elsewhere_is_not_a_path(source: str) -> None:
    assert reasons(disk(f"<disk><source file='{source}'/><target dev='vda'/></disk>")) == ["UnsupportedSource"]


@pytest.mark.parametrize("target", ["../x", "a/b", ".a", "a b", "vd\u0430", "v" * 33, "a&#10;"])
def test_a_target_is_a_file_name(target: str) -> None:
    assert reasons(disk(f"<disk><source file='/a'/><target dev='{target}'/></disk>")) == ["InvalidTarget"]


def test_xens_decorations_of_targets() -> None:
    assert disk("<disk><source file='/a'/><target dev='ioemu:hda'/></disk>").target == "hda"
    cdrom = disk("<disk><source file='/a'/><target dev='hdc:cdrom'/></disk>")
    assert (cdrom.target, cdrom.device, cdrom.read_only) == ("hdc", "cdrom", True)


@pytest.mark.parametrize(
    ("xml", "path"),
    [
        ("<disk device='tape'><source file='/a'/><target dev='a'/></disk>", "@device"),
        ("<disk><driver cache='some'/><source file='/a'/><target dev='a'/></disk>", "driver/@cache"),
        ("<disk><source file='/a' startupPolicy='x'/><target dev='a'/></disk>", "source/@startupPolicy"),
        *(
            (
                f"<disk><source file='/a'/><target dev='a'/><blockio logical_block_size='{size}'/></disk>",
                "blockio/@logical_block_size",
            )
            for size in ("513", "8192", "-512", "4k", "0x", "99999999999999999999")
        ),
        (
            SLICE.format(offset=0, size=0),
            "source/slices/slice/@size",
        ),
        (
            SLICE.format(offset=2**63, size=1),
            "source/slices/slice/@offset",
        ),
    ],
)
def test_values_outside_their_range(xml: str, path: str) -> None:
    found = disk(xml)
    assert reasons(found) == ["InvalidValue"]
    assert found.refused[0].path == f"/domain/devices/disk[1]/{path}"


def test_caches_that_are_honoured_in_part_say_so() -> None:
    for cache, direct, whole in (("none", True, True), ("writeback", False, True), ("directsync", True, False)):
        found = disk(f"<disk><driver cache='{cache}'/><source file='/a'/><target dev='a'/></disk>")
        assert found.spec is not None
        assert found.spec.direct_io is direct
        assert ("driver/@cache" in found.honoured, "driver/@cache" in found.unhonoured) == (whole, not whole)


def test_all_faults_at_once_each_with_its_line_and_good_disks_go_on() -> None:
    guest = parse_domain(
        domain(
            "<disk><source file='/a'/><target dev='vda'/></disk>",
            "<disk device='tape'><driver name='odd'/><source file='b'/></disk>",
            "<disk><target dev='vdc'/></disk>",
            "<disk><source file='/d'/><target dev='vdd'/></disk>",
        )
    )
    assert not guest.complete
    assert [found.spec is not None for found in guest.disks] == [True, False, False, True]
    second = guest.disks[1].refused
    assert {finding.reason for finding in second} == {"MissingTarget", "InvalidValue", "InvalidSource", "UnknownDriver"}
    assert {finding.line for finding in second} == {3}
    assert [finding.line for finding in guest.disks[2].refused] == [4]


def test_every_disk_of_a_doubled_target_is_refused() -> None:
    guest = parse_domain(domain(*(f"<disk><source file='/{n}'/><target dev='vd{n}'/></disk>" for n in "abac")))
    assert [reasons(found) for found in guest.disks] == [["DuplicateTarget"], [], ["DuplicateTarget"], []]
    assert "disks 1 and 3" in guest.disks[0].refused[0].message
    assert guest.disks[2].refused[0].path == "/domain/devices/disk[3]/target/@dev"
    assert [finding.line for found in guest.disks for finding in found.refused] == [2, 4]


def test_the_guests_name() -> None:
    assert parse_domain(domain(name="web")).name == "web"
    assert parse_domain(domain(name="\n  db 1 (old) &amp; co\n ")).name == "db 1 (old) & co"
    assert parse_domain(b"<domain/>", name="web").name == "web"
    assert parse_domain(domain(name="web"), name="web").name == "web"


@pytest.mark.parametrize(
    ("document", "name", "expected"),
    [
        (b"<domain/>", None, ["InvalidName"]),
        (domain(name="web"), "db", ["NameMismatch"]),
        (domain(name="../web"), None, ["InvalidName"]),
        (b"<network><name>web</name></network>", None, ["NotADomain"]),
        (b"<domains><domain><name>web</name></domain></domains>", None, ["NotADomain"]),
        (domain(*["<disk/>"] * 5, name="a/b"), None, ["InvalidName", "TooManyDisks"]),
    ],
)
def test_documents_that_are_no_guest(document: bytes, name: str | None, expected: list[str]) -> None:
    with pytest.raises(DocumentRejected) as rejected:
        parse_domain(document, name=name, limits=Limits(max_disks=4))
    assert [finding.reason.value for finding in rejected.value.findings] == expected
