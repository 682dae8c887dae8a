"""Domains as libvirt and its users write them."""

import pytest

from agent.definition import DocumentRejected, Limits, parse_domain
from reconcilers.spec import Device, DiskKey, DiskSpec, StartupPolicy
from reconcilers.tuning import Aio, Cache, DetectZeroes, Tuning
from tests.definition.samples import disk, domain, reasons

SLICE = (
    "<disk><source file='/a'><slices><slice type='storage' offset='{offset}' size='{size}'/></slices></source>"
    "<target dev='vda'/></disk>"
)

PEAK = (
    "<read_iops_sec>9</read_iops_sec><read_iops_sec_max>{peak}</read_iops_sec_max>"
    "<read_iops_sec_max_length>{length}</read_iops_sec_max_length>"
)


def test_everything_that_a_disk_can_ask_for_arrives_in_its_spec() -> None:
    found = disk("""
      <disk type='file' device='disk' snapshot='external'>
        <target dev='vdb' bus='virtio'/>
        <driver name='qemu' type='qcow2' cache='none' io='native' iothread='1' discard='unmap'
          detect_zeroes='unmap'/>
        <source file='/i/a.qcow2' startupPolicy='requisite' index='1'>
          <seclabel model='dac' relabel='no'/>
          <slices><slice type='storage' offset='04096' size='8192'/></slices>
        </source>
        <backingStore/>
        <blockio logical_block_size='010000' physical_block_size='4096'/>
        <iotune><total_iops_sec>0100</total_iops_sec><read_iops_sec>0</read_iops_sec>
          <total_iops_sec_max> 200 </total_iops_sec_max><group_name>web</group_name></iotune>
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
        logical_block_size=4096,
        slice_offset=4096,
        slice_size=8192,
        startup_policy=StartupPolicy.REQUISITE,
        tuning=Tuning(
            cache=Cache.NONE,
            io=Aio.NATIVE,
            detect_zeroes=DetectZeroes.UNMAP,
            limits=(("total_iops_sec", 100), ("total_iops_sec_max", 200)),
        ),
    )
    assert found.unhonoured == ("blockio/@physical_block_size", "iotune/group_name")
    assert {"@type", "driver/@cache", "driver/@io", "driver/@discard", "iotune/total_iops_sec"} <= set(found.honoured)
    assert {"source/slices", "blockio/@logical_block_size", "readonly"} <= set(found.honoured)
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


@pytest.mark.parametrize("form", ["qcow", "qcow2", "qed", "vdi", "vpc", "vhdx", "vmdk"])
def test_only_a_raw_image_is_shareable_and_writable(form: str) -> None:
    xml = "<disk><driver name='qemu' type='{}'/><source file='/a'/><target dev='vda'/>\n<shareable/>{}</disk>"
    found = disk(xml.format(form, ""))
    assert reasons(found) == ["UnsupportedFeature"]
    assert (found.refused[0].path, found.refused[0].line) == ("/domain/devices/disk[1]/shareable", 3)
    assert (found.shareable, found.spec) == (True, None)
    assert reasons(disk(xml.format(form, "<readonly/>"))) == []
    for raw in ("raw", "aio"):
        assert reasons(disk(xml.format(raw, ""))) == []


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
        *(
            (f"<disk><driver {name}='some'/><source file='/a'/><target dev='a'/></disk>", f"driver/@{name}")
            for name in ("cache", "io", "discard", "detect_zeroes")
        ),
        *(
            (f"<disk><source file='/a'/><target dev='a'/><iotune>{limits}</iotune></disk>", f"iotune/{name}")
            for limits, name in (
                ("<total_bytes_sec>fast</total_bytes_sec>", "total_bytes_sec"),
                ("<total_bytes_sec>1000000000000001</total_bytes_sec>", "total_bytes_sec"),
                ("<total_iops_sec>9</total_iops_sec><read_iops_sec>5</read_iops_sec>", "read_iops_sec"),
                ("<write_bytes_sec_max>9</write_bytes_sec_max>", "write_bytes_sec_max"),
                ("<read_iops_sec>9</read_iops_sec><read_iops_sec_max>8</read_iops_sec_max>", "read_iops_sec_max"),
                (
                    "<read_iops_sec>9</read_iops_sec><read_iops_sec_max_length>8</read_iops_sec_max_length>",
                    "read_iops_sec_max_length",
                ),
                (
                    PEAK.format(peak=500000000000000, length=3),
                    "read_iops_sec_max_length",
                ),
                (
                    PEAK.format(peak=9, length=4294967296),
                    "read_iops_sec_max_length",
                ),
                ("<total_iops_sec>0x10</total_iops_sec>", "total_iops_sec"),
                ("<size_iops_sec>4096</size_iops_sec>", "size_iops_sec"),
            )
        ),
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
            SLICE.format(offset="0x1000", size=1),
            "source/slices/slice/@offset",
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


@pytest.mark.parametrize(
    ("driver", "served"),
    [
        # by loop, by blktap, by a host's own device
        ("cache='none'", (True, True, False)),
        ("cache='writeback'", (True, True, True)),
        ("cache='writethrough'", (False, True, False)),
        ("cache='directsync'", (False, True, False)),
        ("cache='unsafe'", (False, True, False)),
        ("io='threads'", (True, True, False)),
        ("io='native'", (False, False, False)),
        ("io='native' cache='none'", (True, True, False)),
        ("io='threads' cache='none'", (False, True, False)),
        ("io='io_uring'", (False, True, False)),
        ("discard='unmap'", (True, True, True)),
        ("discard='ignore'", (True, True, False)),
        ("detect_zeroes='on'", (False, True, False)),
        ("detect_zeroes='off'", (True, True, True)),
    ],
)
def test_what_is_honoured_depends_on_the_backend(driver: str, served: tuple[bool, ...]) -> None:
    name = f"driver/@{driver.partition('=')[0]}"
    for backend, honoured in zip(("loop", "tap", "phy"), served, strict=True):
        found = disk(f"<disk><driver name='{backend}' {driver}/><source file='/a'/><target dev='a'/></disk>")
        assert found.spec is not None
        assert (name in found.honoured, name in found.unhonoured) == (honoured, not honoured), backend


def test_limits_and_block_sizes_depend_on_the_backend_too() -> None:
    more = "<iotune><read_bytes_sec>1</read_bytes_sec></iotune><blockio logical_block_size='4096'/>"
    for backend, lacking in (
        ("loop", ["iotune/read_bytes_sec"]),
        ("tap", []),
        ("phy", ["iotune/read_bytes_sec", "blockio/@logical_block_size"]),
    ):
        found = disk(f"<disk><driver name='{backend}'/><source file='/a'/><target dev='a'/>{more}</disk>")
        assert sorted(found.unhonoured) == sorted(lacking)


@pytest.mark.parametrize(("setting", "discard"), [("discard='ignore'", False), ("", True)])
def test_unmapping_what_is_not_said_to_be_discarded_only_detects(setting: str, discard: bool) -> None:
    found = disk(f"<disk><driver {setting} detect_zeroes='unmap'/><source file='/a'/><target dev='a'/></disk>")
    assert found.spec is not None
    assert found.spec.tuning == Tuning(discard=discard, detect_zeroes=DetectZeroes.ON)


@pytest.mark.parametrize(
    ("limits", "served"),
    [
        ("<total_bytes_sec>65536</total_bytes_sec>", True),
        ("<total_bytes_sec>65535</total_bytes_sec>", False),
        ("<write_bytes_sec>8192</write_bytes_sec><write_bytes_sec_max>9999999</write_bytes_sec_max>", False),
        ("<total_iops_sec>1</total_iops_sec>", True),
        ("<total_iops_sec>16</total_iops_sec><size_iops_sec>4096</size_iops_sec>", True),
        ("<total_iops_sec>15</total_iops_sec><size_iops_sec>4096</size_iops_sec>", False),
        ("<total_iops_sec>1</total_iops_sec><size_iops_sec>2097152</size_iops_sec>", True),
    ],
)
def test_limits_under_which_a_tap_would_look_hung_are_refused(limits: str, served: bool) -> None:
    more = f"<source file='/a'/><target dev='a'/><iotune>{limits}</iotune>"
    assert reasons(disk(f"<disk><driver name='tap2'/>{more}</disk>")) == ([] if served else ["InvalidValue"])
    assert reasons(disk(f"<disk><driver name='loop'/>{more}</disk>")) == []


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
