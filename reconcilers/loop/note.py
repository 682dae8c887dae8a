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

from reconcilers.actual import FileId
from reconcilers.loop.control import LoopDevice, LoopFlags
from reconcilers.tag import Tag


class DeviceNote(BaseModel):
    """One loop device as the kernel described it when it was new.

    Attributes, where their names do not say it:
        boot: The kernel's boot id; sequence numbers begin anew with each boot.
        device, inode: The backing file's, from stat(2).
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
            flags=LoopFlags.READ_ONLY if self.read_only else LoopFlags.NONE,
            offset=self.offset,
            size_limit=self.size_limit,
        )


class DeviceNotes:
    """A folder of notes, one a disk, by the disk's id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

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
        try:
            return DeviceNote.model_validate_json((self._folder / disk).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

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
            read_only=LoopFlags.READ_ONLY in device.flags,
            offset=device.offset,
            size_limit=device.size_limit,
            label=device.tag.label,
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / disk).write_text(note.model_dump_json(), encoding="utf-8")

    def remove(self, disk: str) -> None:
        """Its device is gone. Idempotent."""
        with suppress(FileNotFoundError):
            (self._folder / disk).unlink()


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
