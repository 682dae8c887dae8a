"""`tapster render`: each hypervisor's own syntax, read back by a reader of that syntax."""

import json
import shlex
from pathlib import Path
from xml.etree import ElementTree as ET  # it reads what we wrote

import pytest

from agent.cli.render import Hypervisor, run
from agent.definition import parse_domain, parse_file
from agent.setting_sections import BlktapSettings
from agent.settings import Settings
from reconcilers.blktap.kinds import DeviceKind
from tests.definition.samples import domain

GUEST = domain(
    "<disk><driver name='qemu' type='qcow2' cache='none'/><source file='/i/a'/><target dev='vda'/></disk>",
    "<disk type='block'><source dev='/dev/b'/><target dev='sdb'/><readonly/><shareable/></disk>",
    "<disk device='cdrom'><target dev='hdc'/></disk>",
    "<disk><source file='/i/d'/><target dev='xvdd'/><blockio logical_block_size='4096'/></disk>",
    name="db, 1 &amp; co",
)
FOLDER = "/run/tapster/disks/db, 1 & co"


def render(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    to: Hypervisor,
    text: bytes = GUEST,
    settings: Settings | None = None,
) -> tuple[int, str, str]:
    file = tmp_path / "guest"
    file.write_bytes(text)
    code = run(to, file=file, guest=None, host="h", settings=settings or Settings(host="h"))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_libvirt_gets_disks_that_parse_as_raw_block_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = render(tmp_path, capsys, "libvirt")
    assert (code, err) == (0, "")
    disks = parse_domain(domain(out)).disks
    assert [(disk.target, disk.source, disk.backend, disk.read_only, disk.shareable) for disk in disks] == [
        ("vda", f"{FOLDER}/vda", "block", False, False),
        ("sdb", f"{FOLDER}/sdb", "block", True, True),
        ("hdc", None, None, True, False),
        ("xvdd", f"{FOLDER}/xvdd", "block", False, False),
    ]
    assert [disk.spec.tuning.cache.direct if disk.spec else None for disk in disks] == [True, False, False, False]
    assert disks[3].spec is not None
    assert disks[3].spec.logical_block_size == 4096


def test_xl_gets_a_list_that_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = render(tmp_path, capsys, "xl")
    assert (code, err) == (0, "")
    (guest,) = parse_file(f"name = 'web'\n{out}".encode())
    assert [(disk.target, disk.source, disk.backend, disk.device, disk.read_only) for disk in guest.disks] == [
        ("vda", f"{FOLDER}/vda", "block", "disk", False),
        ("sdb", f"{FOLDER}/sdb", "block", "disk", True),
        ("hdc", None, None, "cdrom", True),
        ("xvdd", f"{FOLDER}/xvdd", "block", "disk", False),
    ]
    assert guest.complete


def test_qemu_gets_arguments_for_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = render(tmp_path, capsys, "qemu")
    words = shlex.split(out.replace("\\\n", ""))  # a shell joins such lines, shlex does not
    options, values = words[::2], [json.loads(word) for word in words[1::2]]
    assert options == ["-blockdev", "-device", "-blockdev", "-device", "-device", "-blockdev", "-device"]
    assert values[0] == {
        "driver": "host_device",
        "node-name": "disk0",
        "filename": f"{FOLDER}/vda",
        "read-only": False,
        "cache": {"direct": True},
    }
    assert values[1] == {"driver": "virtio-blk-pci", "id": "disk0-vda", "drive": "disk0"}
    assert values[3] == {"driver": "scsi-hd", "id": "disk1-sdb", "drive": "disk1", "share-rw": True}
    assert values[4] == {"driver": "ide-cd", "id": "disk2-hdc"}
    assert values[6]["logical_block_size"] == 4096


def test_small_hypervisors_get_json_without_drives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = render(tmp_path, capsys, "cloud-hypervisor")
    assert json.loads(out)["disks"][1] == {
        "id": "sdb",
        "path": f"{FOLDER}/sdb",
        "image_type": "Raw",
        "readonly": True,
        "direct": False,
    }
    assert (code, len(json.loads(out)["disks"])) == (0, 3)
    assert "'hdc' is left out" in err
    _, out, _ = render(tmp_path, capsys, "firecracker")
    first, *others = json.loads(out)["drives"]
    assert first == {
        "drive_id": "vda",
        "path_on_host": f"{FOLDER}/vda",
        "is_root_device": True,
        "is_read_only": False,
    }
    assert [drive["is_root_device"] for drive in others] == [False, False]


def test_what_is_refused_is_said_and_the_rest_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = domain(
        "<disk type='network'><target dev='vda'/></disk>", "<disk><source file='/b'/><target dev='vdb'/></disk>"
    )
    code, out, err = render(tmp_path, capsys, "libvirt", text)
    assert code == 1
    assert "vdb" in out
    assert "vda" not in out
    assert ":2: UnsupportedSource: " in err
    for bad in (b"<domain/>", domain() + domain()):
        code, out, err = render(tmp_path, capsys, "libvirt", bad)
        assert (code, out) == (1, "")
        assert err


SOCKETS = Settings(host="h", blktap=BlktapSettings(devices=(DeviceKind.NBD_SOCKET,), nbd_grace=60))


def test_who_speaks_nbd_is_given_the_sockets_of_taps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = render(tmp_path, capsys, "libvirt", settings=SOCKETS)
    assert (code, err) == (0, "")
    socket, device, *_ = ET.fromstring(f"<disks>{out}</disks>")
    source, host, wait = (socket.find(path) for path in ("source", "source/host", "source/reconnect"))
    assert source is not None
    assert host is not None
    assert wait is not None
    assert (socket.get("type"), source.attrib) == ("network", {"protocol": "nbd", "name": "disk"})
    assert host.attrib == {"transport": "unix", "socket": f"{FOLDER}/vda"}
    assert wait.attrib == {"delay": "60"}
    assert device.get("type") == "block"
    _, out, _ = render(tmp_path, capsys, "qemu", settings=SOCKETS)
    words = shlex.split(out.replace("\\\n", " "))
    node = json.loads(words[words.index("-blockdev") + 1])
    assert node["server"] == {"type": "unix", "path": f"{FOLDER}/vda"}
    assert (node["driver"], node["export"], node["reconnect-delay"]) == ("nbd", "disk", 60)
    assert "filename" not in node


def test_who_does_not_speak_nbd_is_given_no_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = render(tmp_path, capsys, "xl", settings=SOCKETS)
    assert code == 1
    assert "'vda' is left out" in err
    assert "nbd-socket" in err
    assert "vdev=vda" not in out
    assert "vdev=sdb" in out
