"""The installed service with a guest of three disks: what udev, device policies and memory limits really do."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.real_kernel.conftest import IMAGES, push, run, until
from tests.workbench import loop_disk, tap_disk

VOLUME = "/dev/of-a-guest/root"


@pytest.fixture(scope="module")
def disks() -> dict[str, dict[str, Any]]:
    """The disks of a guest that made an LVM volume group of one, as each backend has it."""
    image = Path("/root/lvm.raw")
    with image.open("wb") as file:
        file.truncate(64 << 20)
    device = run("losetup", "--find", "--show", image)
    run("pvcreate", device)
    run("vgcreate", "of-a-guest", device)
    run("lvcreate", "--yes", "--extents", "4", "--name", "root", "of-a-guest")
    run("vgchange", "--activate", "n", "of-a-guest")
    run("losetup", "--detach", device)
    for name in ("a.raw", "b.raw"):
        run("cp", "--sparse=always", image, IMAGES / name)
    run("qemu-img", "create", "-q", "-f", "qcow2", IMAGES / "c.qcow2", "64M")
    return push(
        "vm1",
        loop_disk("vda", IMAGES / "a.raw"),
        tap_disk("vdb", IMAGES / "b.raw"),
        tap_disk("vdc", IMAGES / "c.qcow2", "qcow2"),
    )


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
    run("udevadm", "settle")
    for disk in disks.values():
        told = run("udevadm", "info", "--query=property", disk["device_path"]).splitlines()
        assert "TAPSTER_DISK=1" in told
        assert not [line for line in told if line.startswith(("ID_FS_", "ID_PART_"))]
    assert not Path(VOLUME).exists()
    assert "No devices found" in run("dmsetup", "ls")
    # The same volume on a device that is nobody's guest's: this host would have it.
    device = run("losetup", "--find", "--show", "/root/lvm.raw")
    try:
        until(Path(VOLUME).exists)
    finally:
        subprocess.run(["vgchange", "--quiet", "--activate", "n", "of-a-guest"], check=False)
        run("losetup", "--detach", device)
