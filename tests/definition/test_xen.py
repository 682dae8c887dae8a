"""Xen's disk strings, from 2005's to today's, and the files that they stand in."""

import pytest

from agent.definition import DocumentRejected, Limits, parse_file
from tests.definition.samples import reasons, xen


@pytest.mark.parametrize(
    ("string", "expected"),
    [
        ("phy:/dev/vg/a,hda,w", ("block", "raw", "/dev/vg/a", "hda", "disk", "rw")),
        ("phy:vg/a,sda1,r", ("block", "raw", "/dev/vg/a", "sda1", "disk", "ro")),
        ("phy:hda6,ioemu:hda,w", ("block", "raw", "/dev/hda6", "hda", "disk", "rw")),
        ("phy:/i/a.img,xvda,w", ("block", "raw", "/i/a.img", "xvda", "disk", "rw")),
        ("file:/i/a.img,xvda,w", ("loop", "raw", "/i/a.img", "xvda", "disk", "rw")),
        ("file:/i/a.iso,hdc:cdrom,r", ("loop", "raw", "/i/a.iso", "hdc", "cdrom", "ro")),
        ("file:/i/a.iso,hdc:cdrom,w", ("loop", "raw", "/i/a.iso", "hdc", "cdrom", "ro")),
        ("file:/i/a=b.img,xvda,w", ("loop", "raw", "/i/a=b.img", "xvda", "disk", "rw")),
        ("tap:aio:/i/a.img,xvda,w", ("blktap", "aio", "/i/a.img", "xvda", "disk", "rw")),
        ("tap:qcow:/i/a,xvda,w", ("blktap", "qcow", "/i/a", "xvda", "disk", "rw")),
        ("tap:tapdisk:aio:/i/a.img,xvda,w", ("blktap", "aio", "/i/a.img", "xvda", "disk", "rw")),
        ("tap:ioemu:/i/a.img,hda,w", ("blktap", "aio", "/i/a.img", "hda", "disk", "rw")),
        ("tap:aio:qcow:/i/a,hda,w", ("blktap", "qcow", "/i/a", "hda", "disk", "rw")),
        ("tap2:vhd:/i/a.vhd,xvda,w", ("blktap", "vhd", "/i/a.vhd", "xvda", "disk", "rw")),
        ("tap2:tapdisk:vmdk:/i/a,xvda,r", ("blktap", "vmdk", "/i/a", "xvda", "disk", "ro")),
        ("qcow2:/i/a,xvda,w", ("blktap", "qcow2", "/i/a", "xvda", "disk", "rw")),
        ("raw:/dev/vg/a,hda,w", ("block", "raw", "/dev/vg/a", "hda", "disk", "rw")),
        ("tap:aio:/i/a.img,xvda,w,dom0", ("blktap", "aio", "/i/a.img", "xvda", "disk", "rw")),
        ("file:/i/a.img,xvda,w!", ("loop", "raw", "/i/a.img", "xvda", "disk", "shared")),
        (",hdc:cdrom,r", (None, None, None, "hdc", "cdrom", "ro")),
        ("phy:,hdc:cdrom,r", (None, None, None, "hdc", "cdrom", "ro")),
        ("/dev/vg/a,,hda", ("block", "raw", "/dev/vg/a", "hda", "disk", "rw")),
        ("/dev/vg/a,raw,hda,rw", ("block", "raw", "/dev/vg/a", "hda", "disk", "rw")),
        ("/i/a.iso,,hdc,cdrom", ("loop", "raw", "/i/a.iso", "hdc", "cdrom", "ro")),
        ("/i/a.iso,,hdc,,cdrom", ("loop", "raw", "/i/a.iso", "hdc", "cdrom", "ro")),
        ("/i/a.iso,raw,hdc,devtype=cdrom", ("loop", "raw", "/i/a.iso", "hdc", "cdrom", "ro")),
        ("/i/a.q,qcow2,hdb,rw", ("blktap", "qcow2", "/i/a.q", "hdb", "disk", "rw")),
        ("format=raw, vdev=hda, access=rw, target=/dev/vg/a", ("block", "raw", "/dev/vg/a", "hda", "disk", "rw")),
        ("format=qcow2,vdev=xvda,access=ro,target=/i/a,b=c", ("blktap", "qcow2", "/i/a,b=c", "xvda", "disk", "ro")),
        ("format=vhd,/i/a.vhd,xvda", ("blktap", "vhd", "/i/a.vhd", "xvda", "disk", "rw")),
        ("format=raw,vdev=hdd,access=ro,devtype=cdrom", (None, None, None, "hdd", "cdrom", "ro")),
        ("format=raw,vdev=xvda,backendtype=tap,target=/i/a", ("blktap", "aio", "/i/a", "xvda", "disk", "rw")),
        ("format=raw,vdev=xvda,backendtype=phy,target=/i/a", ("block", "raw", "/i/a", "xvda", "disk", "rw")),
        ("format=qed,backendtype=qdisk,vdev=hda,target=/i/a", ("blktap", "qed", "/i/a", "hda", "disk", "rw")),
        ("format=raw,vdev=hda,access=!,target=/i/a", ("loop", "raw", "/i/a", "hda", "disk", "shared")),
        ("vdev=hda,target=vg/a", ("block", "raw", "/dev/vg/a", "hda", "disk", "rw")),
    ],
)
def test_disk_string(string: str, expected: tuple[str | None, ...]) -> None:
    found = xen(string)
    mode = "ro" if found.read_only else "shared" if found.shareable else "rw"
    assert reasons(found) == []
    assert (found.backend, found.format, found.source, found.target, found.device, mode) == expected
    assert found.spec is not None
    assert found.type == ("block" if found.backend == "block" else "file")


@pytest.mark.parametrize(
    ("string", "reason"),
    [
        ("nbd:host:10809,xvda,w", "UnsupportedSource"),
        ("drbd:res,xvda,w", "UnsupportedSource"),
        ("format=raw,vdev=xvda,target=rbd:pool/image", "UnsupportedSource"),
        ("file:a.img,xvda,w", "InvalidSource"),
        ("phy:../a,xvda,w", "InvalidSource"),
        ("/i/a,zfs,xvda", "UnknownFormat"),
        ("vdev=xvda,backendtype=standalone,target=/i/a", "UnknownDriver"),
        ("tap:aio:/i/a,xvda,w,storage", "UnsupportedFeature"),
        ("vdev=xvda,script=block-iscsi,target=/i/a", "UnsupportedFeature"),
        ("vdev=xvda,colo,target=/i/a", "UnsupportedFeature"),
        ("/i/a,qcow2,xvda,w!", "UnsupportedFeature"),
        ("file:/i/a,xvda,x", "InvalidValue"),
        ("vdev=xvda,vdev=xvdb,target=/i/a", "InvalidValue"),
        ("file:/i/a,hda:tape,w", "InvalidValue"),
        ("file:/i/a,../hda,w", "InvalidTarget"),
        ("file:/i/a", "MissingTarget"),
        (",,xvda", "MissingSource"),
        ("file:/i/a,xvda," + "w" * 9000, "InvalidValue"),
    ],
)
def test_disk_strings_that_are_refused(string: str, reason: str) -> None:
    found = xen(string)
    assert reason in reasons(found)
    assert found.spec is None
    assert {finding.line for finding in found.refused} == {2}


def test_nothing_in_a_string_is_dropped_silently() -> None:
    found = xen("vdev=xvda,direct-io-safe,no-discard,trusted,specification=virtio,sparkle=1,target=/i/a")
    assert found.honoured == ("vdev", "no-discard", "target")
    assert found.unhonoured == ("direct-io-safe",)
    assert found.passed == ("trusted", "specification")
    assert found.unknown == ("sparkle",)


CONFIGURATION = b'''\
# a guest of 2006
import os, re
name = "web" ; memory = 256
vif = [ 'mac=00:16:3e:00:00:01, bridge=xenbr0' ]   # disk = [ 'file:/no,xvdz,w' ]
disk = [ 'phy:/dev/vg/a,hda,w',   # the system
         "tap:aio:/i/with \\"quotes\\".img,"
         "hdb,r",
         r'file:/i/c\\d.img,hdd,w', ]
disk += [ """/i/e.iso,,hdc,,cdrom""" ]
if os.uname()[4] == 'x86_64':
    kernel = "/boot/x"
def f(name='other'):
    return 1
extra = "disk = []"
on_crash = 'restart'
cdrom = '/dev/sr0'
fda = ""
'''


def test_a_configuration_file_is_read_as_data() -> None:
    (guest,) = parse_file(CONFIGURATION)
    assert guest.name == "web"
    assert guest.complete is False  # hdc is there twice
    assert [(found.target, found.source, found.line) for found in guest.disks] == [
        ("hda", "/dev/vg/a", 5),
        ("hdb", '/i/with "quotes".img', 6),
        ("hdd", "/i/c\\d.img", 8),
        ("hdc", "/i/e.iso", 9),
        ("hdc", "/dev/sr0", 16),
    ]
    assert guest.disks[-1].read_only


@pytest.mark.parametrize(
    "text",
    [
        "disk = [ 'file:%s,xvda,w' % path ]",
        "disk = [ 'file:' + path + ',xvda,w' ]",
        "disk = make_disks()",
        "disk = [ f'file:{path},xvda,w' ]",
        "disk = [ 'file:/a,xvda,w'",
        "disk = [ 'file:/a,xvda,w ]",
        "if True:\n    disk = [ 'file:/a,xvda,w' ]",
        "if True: disk = [ 'file:/a,xvda,w' ]",
        "disk.append('file:/a,xvda,w')",
    ],
)
def test_what_only_running_the_file_could_tell_is_a_fault(text: str) -> None:
    with pytest.raises(DocumentRejected) as rejected:
        parse_file(f"name = 'web'\n{text}\n".encode())
    (finding,) = rejected.value.findings
    assert (finding.reason, finding.path) == ("InvalidDocument", "disk")
    assert rejected.value.guest == "web"


def test_nothing_in_a_configuration_file_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = b"name = 'web'\nprint('ran')\nx = __import__('sys').stdout.write('ran')\ndisk = []\n"
    assert parse_file(text)[0].disks == ()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (b"", None, ["NotADomain"]),
        (b"some prose, and no definition", None, ["NotADomain"]),
        (b"memory = 1", None, ["InvalidName"]),
        (b"name = 'a/b'\ndisk = [" + b"'file:/a,xvda,w'," * 5 + b"]", None, ["InvalidName", "TooManyDisks"]),
        (b"name = 'web'", "db", ["NameMismatch"]),
        (b"a=1;" * 100, None, ["DocumentTooLarge"]),
    ],
)
def test_configuration_files_that_are_no_guest(text: bytes, name: str | None, expected: list[str]) -> None:
    with pytest.raises(DocumentRejected) as rejected:
        parse_file(text, name=name, limits=Limits(max_disks=4, max_parts=300))
    assert [finding.reason.value for finding in rejected.value.findings] == expected


SXP = b"""\
(domain (domid 3)
  (name 'web')(description ')(')(memory 400)
  (image (hvm (kernel '/usr/lib/xen/boot/hvmloader')(name 'no')))
  (device (vbd (dev 'hda:disk')(uname 'file:/i/a.img')(mode 'w')))
  (device (vbd (driver paravirtualised) (mode r) (dev hdc:cdrom) (uuid fca3aa85)))
  (device (vif (mac '00:16:3e:00:00:01')(script 'vif-bridge')(type ioemu)))
  (device (tap (dev 'xvdb')(uname 'tap:qcow:/i/it\\'s (b)')(mode 'w!')(sparkle 1)))
  (device (vbd (dev 'sda1')(uname phy:vg/c)(mode r)(backend 2))))
"""


def test_a_domain_as_xend_kept_it() -> None:
    guest, other = parse_file(SXP + b"(domain (name db))")
    assert (guest.name, other.name) == ("web", "db")
    assert [(disk.target, disk.backend, disk.format, disk.source, disk.read_only) for disk in guest.disks] == [
        ("hda", "loop", "raw", "/i/a.img", False),
        ("hdc", None, None, None, True),
        ("xvdb", "blktap", "qcow", "/i/it's (b)", False),
        ("sda1", "block", "raw", "/dev/vg/c", True),
    ]
    assert [disk.line for disk in guest.disks] == [4, 5, 7, 8]
    assert guest.disks[1].device == "cdrom"
    assert guest.disks[1].passed == ("driver", "uuid")
    assert (guest.disks[2].shareable, guest.disks[2].unknown) == (True, ("sparkle",))
    assert [reasons(disk) for disk in guest.disks] == [[], [], ["UnsupportedFeature"], ["UnsupportedFeature"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"(domain (name web)", ["InvalidDocument"]),
        (b"(domain (name 'web))", ["InvalidDocument"]),
        (b"(", ["InvalidDocument"]),
        (b"()", ["NotADomain"]),
        (b"(host (name web))", ["NotADomain"]),
        (b"(domain)", ["InvalidName"]),
        (b"(domain (name a/b))", ["InvalidName"]),
        (b"(domain (name web)" + b"(device (vbd))" * 300 + b")", ["TooManyDisks"]),
        (b"(" * 1000, ["TooDeep"]),
        (b"(domain" + b" a" * 30_000 + b")", ["DocumentTooLarge"]),
    ],
)
def test_expressions_that_are_no_guest(text: bytes, expected: list[str]) -> None:
    with pytest.raises(DocumentRejected) as rejected:
        parse_file(text)
    assert [finding.reason.value for finding in rejected.value.findings] == expected
