"""What is written down of each of our loop devices, for when the kernel does not tell it.

LOOP_GET_STATUS64 asks the file system under the backing file before it says anything, so of a device over a dead mount
there is no tag to read. A path is left in sysfs, and even that is `/` once the mount was taken out of the tree, which
a FUSE server that ends in order does itself. Such a device would be nobody's for ever.

A note is believed of the very attachment that it was written for, by boot, number and sequence number, and of no other.
"""

import os
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from reconcilers import record_file
from reconcilers.actual import FileId
from reconcilers.loop.control import LoopDevice
from reconcilers.tag import Tag


class DeviceNote(BaseModel):
    """One loop device as the kernel described it when it was new.

    Attributes, where their names do not say it:
        boot: The kernel's boot id; sequence numbers begin anew with each boot.
        device, inode: The backing file's (see `FileId`).
        label: The tag's.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    boot: str
    minor: int
    diskseq: int
    device: int
    inode: int
    read_only: bool
    offset: int
    size_limit: int
    label: str

    def is_of(self, device: LoopDevice) -> bool:
        """Whether it is this very attachment."""
        return (self.boot, self.minor, self.diskseq) == (_boot_id(), device.minor, device.diskseq)

    def added_to(self, device: LoopDevice, instance: str, disk: str) -> LoopDevice:
        """The device with what the kernel did not tell."""
        return replace(
            device,
            backing=FileId(self.device, self.inode),
            tag=Tag(instance, disk, self.label),
            read_only=self.read_only,
            offset=self.offset,
            size_limit=self.size_limit,
        )


class DeviceNotes:
    """A folder of notes, one a disk, by the disk's id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prefix = str(folder)

    def disks(self) -> dict[str, bool]:
        """The ids of the disks that there are notes of, and whether each was written to its end, which is one write."""
        written = dict[str, bool]()
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._folder):
                with suppress(FileNotFoundError):  # its disk goes at this moment
                    written[entry.name] = entry.stat().st_size > 0
        return written

    def read(self, disk: str) -> DeviceNote | None:
        """What is written down of a disk's device; None where nothing is, or its writing was cut short."""
        return record_file.read(f"{self._prefix}/{disk}", DeviceNote)

    def write(self, disk: str, device: LoopDevice) -> None:
        """Write down what is known of a disk's device."""
        if device.diskseq is None or device.backing is None or device.tag is None:
            return  # a kernel before 5.15, where nothing names an attachment
        note = DeviceNote(
            boot=_boot_id(),
            minor=device.minor,
            diskseq=device.diskseq,
            device=device.backing.device,
            inode=device.backing.inode,
            read_only=device.read_only,
            offset=device.offset,
            size_limit=device.size_limit,
            label=device.tag.label,
        )
        fd = self._new(disk)
        try:
            os.write(fd, note.model_dump_json().encode())
        finally:
            os.close(fd)

    def _new(self, disk: str) -> int:
        path, flags = f"{self._prefix}/{disk}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o644)
        except FileNotFoundError:  # the first since the host was started
            self._folder.mkdir(parents=True, exist_ok=True)
            return os.open(path, flags, 0o644)

    def remove(self, disk: str) -> None:
        """Its device is gone. Idempotent."""
        with suppress(FileNotFoundError):
            (self._folder / disk).unlink()


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
