"""Who has a file or device open, found in /proc, for messages that name the holder.

A scan costs milliseconds and grows with the host, so it is made only when somebody must be named.
"""

import os
import select
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reconcilers.actual import FileId
from reconcilers.host_tree import mount_table

GLANCE_SECONDS = (0.005, 0.02, 0.05)
"""How long whoever only looks at a device is waited for, and waited for again."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with its name (proc(5), comm)."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def holders_of_path(path: str) -> list[Holder]:
    """Processes that have `path` open, and `mount` entries that use it, by name alone: nothing is opened or stat'ed."""
    found = {pid for pid, fd in _open_files() if _target(pid, fd) == path}
    return [Holder(pid, _name(pid)) for pid in sorted(found - {os.getpid()})]


def holders_of_file(identity: FileId, *, writers_only: bool = False) -> list[Holder]:
    """Processes that have the file open under any name, without a look at the file where the inode differs."""
    found = {pid for pid, fd in _open_files() if _is_open_on(pid, fd, identity, writers_only=writers_only)}
    return [Holder(pid, _name(pid)) for pid in sorted(found - {os.getpid()})]


def mounts_of(device_path: str) -> list[str]:
    """Mount points whose source is the device, to be shown: what is not UTF-8 in them is told by its numbers."""
    with mount_table().open(encoding="utf-8", errors="backslashreplace") as table:
        rows = [(line.split(" "), line.partition(" - ")[2].split(" ")) for line in table]
    return [left[4] for left, right in rows if len(right) > 1 and right[1] == device_path]


@dataclass(frozen=True, slots=True)
class DeviceHolders:
    """Who uses a block device; as text, a phrase for a message.

    Attributes:
        processes: That have it open.
        mounts: Points where it is mounted.
        devices: Kernel names of devices that stand on it.
    """

    processes: tuple[Holder, ...]
    mounts: tuple[str, ...]
    devices: tuple[str, ...]

    @classmethod
    def of(cls, device_path: str) -> "DeviceHolders":
        """Look for those of a device."""
        stacked = Path("/sys/block", Path(device_path).name, "holders").glob("*")
        return cls(
            processes=tuple(holders_of_path(device_path)),
            mounts=tuple(mounts_of(device_path)),
            devices=tuple(sorted(entry.name for entry in stacked)),
        )

    @property
    def found(self) -> bool:
        """Whether there is anybody that can be seen from here."""
        return bool(self.processes or self.mounts or self.devices)

    def __str__(self) -> str:
        parts = [
            *(f"mounted on {point}" for point in self.mounts),
            *(f"held by device {holder}" for holder in self.devices),
            *(f"open in {holder}" for holder in self.processes),
        ]
        return ", ".join(parts) or "open in the kernel or in another process namespace"


def keepers(device_path: str, take_down: Callable[[], bool]) -> DeviceHolders | None:
    """Try to take a device down until it goes, or somebody is found who has it.

    Who can't be found had it open for a moment only, to look at it, as udev and `losetup --all` do.

    Returns:
        Who keeps it; None if it went.
    """
    for pause in GLANCE_SECONDS:
        if take_down():
            return None
        if (holders := DeviceHolders.of(device_path)).found:
            return holders
        select.select((), (), (), pause)  # time.sleep() is until a time, which libfaketime may have moved: EINVAL
    return None if take_down() else DeviceHolders.of(device_path)


def _open_files() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield from ((int(entry.name), fd) for fd in os.listdir(entry / "fd"))  # noqa: PTH208 - hot
            except OSError:  # the process has ended
                continue


def _target(pid: int, fd: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")  # noqa: PTH115 - hot
    except OSError:
        return None


def _is_open_on(pid: int, fd: str, identity: FileId, *, writers_only: bool) -> bool:
    try:
        text = Path(f"/proc/{pid}/fdinfo/{fd}").read_text(encoding="ascii", errors="replace")
        facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if int(facts.get("ino", "-1")) != identity.inode:
            return False
        if writers_only and int(facts["flags"], 8) & os.O_ACCMODE == os.O_RDONLY:
            return False
        return os.stat(f"/proc/{pid}/fd/{fd}").st_dev == identity.device  # noqa: PTH116 - hot
    except OSError:  # closed meanwhile
        return False


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "a process that has just ended"
