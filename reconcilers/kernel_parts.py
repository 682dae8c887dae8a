"""What the agent needs of the kernel, judged by what that shows: distributions add to kernels of any number."""

import os
from pathlib import Path

from reconcilers import sysfs

ENOUGH = "Linux 5.15 or newer"

_MAX_PART = Path("/sys/module/loop/parameters/max_part")


def why_unfit() -> str | None:
    """What the kernel does not tell without which disks would be mixed up; None if it tells all.

    Who has an image open is known by `ino:` (Linux 5.14), and whether the device under a number is the one that it was
    by its sequence number (5.15). What shows that has LOOP_CONFIGURE (5.8) and the mark on nbd devices (5.14) too.
    """
    if not _tells_inodes():
        return f"the kernel does not tell which files are open (ino: in /proc/self/fdinfo); boot {ENOUGH}"
    if not _numbers_attachments():
        return f"the kernel does not tell a block device from the next one in its place (diskseq); boot {ENOUGH}"
    return None


def why_no_loop() -> str | None:
    """Why guests can't be given loop devices, and what to do about it; None if they can."""
    if problem := unopenable("/dev/loop-control"):
        return f"{problem}; load it with `modprobe loop`"
    if most := _partitions_scanned():
        return (
            f"loop has max_part={most}, so the kernel would read guests' partition tables; load it without "
            "(`modprobe -r loop && modprobe loop max_part=0`), or drop loop.max_part= from the kernel's command line"
        )
    return None


def unopenable(path: str) -> str | None:
    """Why a control node of the kernel's can't be opened; None if it can."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


def _tells_inodes() -> bool:
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return "\nino:" in Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii", errors="replace")
    finally:
        os.close(fd)


def _numbers_attachments() -> bool:
    """Every block device shows its number, or none does. Where there is no device, none can be taken for another."""
    names = os.listdir("/sys/block")  # noqa: PTH208 - names, not Paths: there may be thousands
    return not names or any(sysfs.exists(f"/sys/block/{name}/diskseq") for name in names)


def _partitions_scanned() -> int:
    """0 unless somebody has set it (drivers/block/loop.c); the file lacks as long as the module is not loaded."""
    try:
        return max(0, int(_MAX_PART.read_text(encoding="ascii")))
    except FileNotFoundError:
        return 0
