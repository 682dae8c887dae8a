"""What udev decides about guests' disks, with the rule that is shipped and without it."""

import binascii
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.on_host import FOLDER_PREFIX

RULE = Path(__file__).parent.parent / "systemd/udev/50-tapster.rules"
UDEVADM = shutil.which("udevadm", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")

pytestmark = [
    pytest.mark.usefixtures("host_parts"),
    pytest.mark.skipif(UDEVADM is None, reason="this machine lacks udevadm: apt-get install udev"),
]

# In a mount namespace of its own: udev's rules with another folder's in place of them, and its database apart.
ASK = """
mount --bind "$1" /usr/lib/udev/rules.d 2>/dev/null || { mount -t tmpfs none /mnt && mkdir /mnt/rules.d &&
cp "$1"/* /mnt/rules.d && mkdir -p /usr/lib/udev && mount --bind /mnt /usr/lib/udev; }
mkdir -p /run/udev && mount -t tmpfs none /run/udev
exec "$2" test --action=change "$3"
"""


def lvm_header() -> bytes:
    """The first two sectors of an LVM2 physical volume, as blkid knows one (lib/label/label.h of LVM)."""
    rest = struct.pack("<I8s32s", 32, b"LVM2 001", b"A" * 32).ljust(512 - 20, b"\0")
    crc = binascii.crc32(rest, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return bytes(512) + struct.pack("<8sQI", b"LABELONE", 1, crc) + rest


@contextmanager
def loop_over(path: Path) -> Iterator[str]:
    command = ["losetup", "--show", "-f", str(path)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def decision(device: str, rules: Path) -> dict[str, str]:
    """The properties that udev would give the device."""
    sysfs = f"/sys/block/{Path(device).name}"
    command = ["unshare", "--mount", "sh", "-c", ASK, "sh", str(rules), str(UDEVADM), sysfs]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in answer.stdout.splitlines() if line[:1].isupper() and "=" in line)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("place", "is_ours"), [("taps/0123456789abcdef/export", True), ("taps/x/export", False), ("image.img", False)]
)
def test_udev_looks_into_no_guests_disk(folder: Path, place: str, is_ours: bool) -> None:
    disk = folder / place
    disk.parent.mkdir(parents=True, exist_ok=True)
    disk.write_bytes(lvm_header().ljust(8 << 20, b"\0"))
    its_own = Path(str(UDEVADM)).resolve().parent.parent / "lib/udev/rules.d"
    without, with_rule = folder / "without", folder / "with"
    for rules in (without, with_rule):
        shutil.copytree(its_own, rules, ignore=shutil.ignore_patterns(RULE.name))
    shutil.copy(RULE, with_rule)
    with loop_over(disk) as device:
        assert decision(device, without)["ID_FS_TYPE"] == "LVM2_member"
        told = decision(device, with_rule)
    assert ("ID_FS_TYPE" in told) is not is_ours
    assert (told.get("SYSTEMD_READY") == "0") is is_ours
    assert (told.get("TAPSTER_DISK") == "1") is is_ours
