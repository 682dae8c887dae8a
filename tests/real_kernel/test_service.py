"""The installed service with a guest of three disks: what udev, device policies and memory limits really do."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reconcilers.spec import DiskKey
from reconcilers.tag import disk_id
from tests.real_kernel.conftest import IMAGES, push, run, until
from tests.workbench import loop_disk, tap_disk

ELSEWHERE = Path("/root/lvm.raw")
VOLUME = Path("/dev/of-a-guest/root")
LABEL = Path("/dev/disk/by-label/of-a-guest")


@pytest.fixture(scope="module")
def disks() -> dict[str, dict[str, Any]]:
    """The disks of a guest, which has a label on the first one and an LVM volume on the second."""
    run("mke2fs", "-q", "-L", LABEL.name, IMAGES / "a.raw", "64M")
    make_volume()
    run("cp", "--sparse=always", ELSEWHERE, IMAGES / "b.raw")
    run("qemu-img", "create", "-q", "-f", "qcow2", IMAGES / "c.qcow2", "64M")
    return push(
        "vm1",
        loop_disk("vda", IMAGES / "a.raw"),
        tap_disk("vdb", IMAGES / "b.raw"),
        tap_disk("vdc", IMAGES / "c.qcow2", "qcow2"),
    )


def make_volume() -> None:
    """On a device that is no guest's, so that this host activates it, and then has to forget that it did."""
    with ELSEWHERE.open("wb") as file:
        file.truncate(64 << 20)
    device = run("losetup", "--find", "--show", ELSEWHERE)
    run("pvcreate", device)
    run("vgcreate", VOLUME.parent.name, device)
    run("lvcreate", "--yes", "--extents", "4", "--name", VOLUME.name, VOLUME.parent.name)
    run("udevadm", "settle")
    run("vgchange", "--activate", "n", VOLUME.parent.name)
    run("losetup", "--detach", device)
    run("udevadm", "settle")
    for note in Path("/run/lvm").glob("*_online/*"):
        note.unlink()


def told(device: str) -> list[str]:
    """What udev knows of a device."""
    run("udevadm", "settle")
    return run("udevadm", "info", "--query=property", device).splitlines()


def test_each_backend_serves_under_the_units_limits(disks: dict[str, dict[str, Any]]) -> None:
    assert {target: disk["phase"] for target, disk in disks.items()} == dict.fromkeys(("vda", "vdb", "vdc"), "Up")
    kinds = [Path(disk["device_path"]).name[:3] for disk in disks.values()]
    assert kinds == ["loo", "nbd", "nbd"], "the package's settings prefer nbd and its modprobe.d has no partitions read"
    for disk in disks.values():
        with Path(disk["stable_path"]).open("r+b", buffering=0) as device:
            device.seek(32 << 20)
            device.write(b"x" * 4096)
    assert run("systemctl", "is-active", "tapster.service", "tapster-disks.target") == "active\nactive"


def test_the_host_takes_no_guests_disk_for_its_own(disks: dict[str, dict[str, Any]]) -> None:
    for disk in disks.values():
        known = told(disk["device_path"])
        assert "TAPSTER_DISK=1" in known
        assert not [line for line in known if line.startswith(("ID_FS_", "ID_PART_"))]
    assert not VOLUME.exists()
    assert not LABEL.exists()
    assert "No devices found" in run("dmsetup", "ls")
    device = run("losetup", "--find", "--show", ELSEWHERE)
    try:
        assert "ID_FS_TYPE=LVM2_member" in told(device), "the same on a device that is no guest's"
    finally:
        run("losetup", "--detach", device)


def inside(cgroup: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program under the limits of a control group."""
    enter = ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(cgroup)]
    return subprocess.run([*enter, *words], capture_output=True, text=True, check=False)


def cgroup_of(unit: str) -> Path:
    return Path("/sys/fs/cgroup" + run("systemctl", "show", "--property=ControlGroup", "--value", unit))


def test_the_agent_has_no_network_and_no_devices_but_those_of_disks(disks: dict[str, dict[str, Any]]) -> None:
    process = Path("/proc", run("systemctl", "show", "--property=MainPID", "--value", "tapster.service"))
    assert (process / "ns/net").readlink() != Path("/proc/1/ns/net").readlink()
    cgroup = cgroup_of("tapster.service")
    for allowed in ("/dev/null", disks["vda"]["device_path"], disks["vdb"]["device_path"]):
        assert inside(cgroup, "head", "-c0", allowed).returncode == 0
    assert "Operation not permitted" in inside(cgroup, "head", "-c0", "/dev/kmsg").stderr
    handed_over = {file.stat().st_rdev for file in (process / "fd").iterdir()}
    assert Path("/dev/kmsg").stat().st_rdev in handed_over


def test_another_server_comes_behind_the_same_nbd_device(disks: dict[str, dict[str, Any]]) -> None:
    """The kernel's nbd answers in the host's network alone, and the agent is not in it."""

    def shown() -> dict[str, Any]:
        (guest,) = json.loads(run("tapster", "status", "--output=json", "vm1"))
        (disk,) = [disk for disk in guest["disks"] if disk["target"] == "vdb"]
        return disk  # type: ignore[no-any-return]

    before = disks["vdb"]["effective"]["tap"]["process_id"]
    run("kill", "-KILL", str(before))
    until(lambda: ((shown()["effective"] or {}).get("tap") or {}).get("process_id") not in {None, before})
    until(lambda: shown()["phase"] == "Up")
    assert shown()["device_path"] == disks["vdb"]["device_path"]
    with Path(disks["vdb"]["stable_path"]).open("rb", buffering=0) as device:
        device.seek(32 << 20)
        assert device.read(4096) == b"x" * 4096


def test_a_tap_is_held_to_its_devices_and_its_memory(disks: dict[str, dict[str, Any]]) -> None:
    unit = f"tapster-tap@{disk_id(DiskKey('vm1', 'vdb'))}.service"
    cgroup = cgroup_of(unit)
    assert cgroup.name == unit
    assert int((cgroup / "memory.max").read_text()) == 2 << 30
    assert inside(cgroup, "head", "-c0", "/dev/null").returncode == 0
    assert "Operation not permitted" in inside(cgroup, "head", "-c0", "/dev/kmsg").stderr
    run("systemctl", "set-property", "--runtime", cgroup.name, "MemoryMax=96M")
    assert inside(cgroup, "python3", "-c", "b'x' * (200 << 20)").returncode == -signal.SIGKILL
