"""Our loop devices on this host: found by their tags, made, and taken down unless in use."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from reconcilers import block_layer
from reconcilers.actual import FileId
from reconcilers.blktap.nbd import control as nbd
from reconcilers.blktap.tap import TAPS, TapFolder
from reconcilers.errors import DiskError
from reconcilers.holders import keepers
from reconcilers.loop import control, minors
from reconcilers.loop.control import LoopDevice
from reconcilers.loop.minors import LoopNumbers
from reconcilers.loop.note import DeviceNotes
from reconcilers.loop.scan import bound_devices
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey
from reconcilers.tag import Tag, disk_id

DEFAULT_BLOCK_SIZE = 512


class _Bound(NamedTuple):
    """What was on a device when we looked last: a disk, and the attachment's number."""

    disk: str
    diskseq: int | None


class LoopDevices:
    """One instance's loop devices. What is remembered is only where to look; every answer is the kernel's."""

    def __init__(self, instance: str, runtime: Path) -> None:
        """Args: this agent's instance, and its folder of taps, whose exports devices of ours stand on, and of notes."""
        self._instance = instance
        self._taps = (runtime / TAPS).resolve()
        self._notes = DeviceNotes(runtime / "loops")
        self._numbers = LoopNumbers()
        self._minors: dict[str, int] = {}
        self._bound: dict[int, _Bound] = {}

    def survey(self) -> dict[str, LoopDevice]:
        """Look at every bound loop device of the host; those of this instance, by the id of their disk."""
        before, noted = dict(self._minors), self._notes.disks()
        self._numbers.learn()
        devices = (self._told(device, noted) for device in bound_devices())
        ours = {disk: device for device in devices if (disk := self._disk_of(device))}
        for disk, device in ours.items():
            # Added to, not put in place of: other threads attach and detach meanwhile, and what they noted is newer
            # than what was read here. `find` drops what is gone.
            if self._minors.get(disk) == before.get(disk):
                self._remember(disk, device)
            if not noted.get(disk):  # its agent was killed before it could
                self._notes.write(disk, device)
        for disk in noted.keys() - ours.keys() - self._minors.keys():
            self._notes.remove(disk)
        return ours

    def find(self, key: DiskKey) -> LoopDevice | None:
        """The device that belongs to a disk; None if there is none, also when it was taken away behind our back."""
        disk = disk_id(key)
        minor = self._minors.get(disk)
        if minor is None:
            return None
        device = control.describe(minor)
        if device is None or self._disk_of(device := self._told(device, [disk])) != disk:
            self._forget(disk)
            return None
        self._remember(disk, device)
        return device

    def glimpse(self, key: DiskKey) -> LoopDevice | None:
        """As `find`, without a question to the file system under its backing file, which does not answer."""
        disk = disk_id(key)
        minor = self._minors.get(disk)
        device = None if minor is None else control.describe_outside(minor)
        return device if device and self._disk_of(self._told(device, [disk])) == disk else None

    def lost(self, minor: int, diskseq: int | None) -> str | None:
        """The id of the disk that was on loop device `minor`, if that is bound no more or to something else.

        Args:
            minor: The device that the kernel tells of.
            diskseq: What the kernel has told of it. Whoever takes a disk away may have bound the device anew by now.
        """
        bound = self._bound.get(minor)  # first, since the kernel tells of everybody's devices
        if bound is None or self._minors.get(bound.disk) != minor:
            return None
        anew = diskseq is not None and bound.diskseq is not None and diskseq > bound.diskseq
        return bound.disk if anew or not minors.is_bound(minor) else None

    def over(self, rdevs: Collection[int]) -> list[tuple[str | None, LoopDevice]]:
        """The loop devices over one of these block devices, each with the id of its disk if it is this instance's.

        A loop device opens what it is on as anybody does, so no exclusive open finds it (drivers/block/loop.c). None
        is overlooked that does not answer: devtmpfs, where the nodes of block devices are, always does.
        """
        return [
            (self._disk_of(device), device)
            for device in bound_devices()
            if device.backing and not device.backing.inode and device.backing.device in rdevs
        ]

    def attach(
        self,
        key: DiskKey,
        backing_fd: int,
        *,
        read_only: bool,
        direct_io: bool = False,
        discard: bool = True,
        block_size: int | None = None,
        offset: int = 0,
        size_limit: int | None = None,
    ) -> LoopDevice:
        """Bind a tagged device; the arguments are those of `control.attach`, and whether it passes on discards.

        Raises:
            DiskError: DeviceInUse if the number never passes on discards and somebody looks at the device; it stays,
                and `find` finds it.
        """

        def bound() -> LoopDevice:
            device = control.attach(
                backing_fd,
                self._numbers,
                tag=Tag.of(self._instance, key),
                read_only=read_only,
                direct_io=direct_io,
                block_size=block_size or DEFAULT_BLOCK_SIZE,
                offset=offset,
                size_limit=size_limit or 0,
            )
            self._remember(disk_id(key), device)  # at once: whatever fails from now on, it is there and has the image
            return device

        device = bound()
        while discard and control.discard_stopped(device):
            _take_down(device)
            minors.retire(device.minor)
            device = bound()
        if not discard:
            control.stop_discard(device)
        self._notes.write(disk_id(key), device)
        return device

    def grow(self, key: DiskKey) -> None:
        """Let a disk's device take on its file's size, which is larger."""
        if device := self.find(key):
            control.grow(device)

    def detach(self, key: DiskKey) -> None:
        """Take a disk's device down; fine if there is none.

        Raises:
            DiskError: DeviceInUse, with who holds it; the device is as it was.
        """
        device = self.find(key)
        if device is None:
            return
        spoilt = control.discard_stopped(device)
        _take_down(device)
        self._forget(disk_id(key))
        if spoilt:
            minors.retire(device.minor)
        else:
            self._numbers.give_back(device.minor)

    def _remember(self, disk: str, device: LoopDevice) -> None:
        self._minors[disk] = device.minor
        self._bound[device.minor] = _Bound(disk, device.diskseq)  # one too many does no harm: `_minors` decides

    def _forget(self, disk: str) -> None:
        self._minors.pop(disk, None)
        self._notes.remove(disk)

    def _told(self, device: LoopDevice, disks: Iterable[str]) -> LoopDevice:
        """The device, with what was written down of it if the kernel does not tell. It may be one of these disks'."""
        for disk in disks if device.error else ():
            note = self._notes.read(disk)
            if note and note.is_of(device):
                return note.added_to(device, self._instance, disk)
        return device

    def _disk_of(self, device: LoopDevice) -> str | None:
        """The id of the disk that a device of this instance belongs to."""
        if device.tag:
            return device.tag.disk if device.tag.instance == self._instance else None
        # Its tag can't be read, nor is there a note: the path of a tap's export is ours alone, and names the disk too.
        tap = TapFolder.of_export(Path(device.backing_path or "/"))
        return tap.path.name if tap and tap.path.parent == self._taps else None


def _take_down(device: LoopDevice) -> None:
    if holders := keepers(device.path, lambda: control.try_detach(device)):
        raise DiskError(Reason.DEVICE_IN_USE, f"{device.path} is {holders}", holders)


def devices_over(identity: FileId) -> list[LoopDevice]:
    """The loop devices, ours or not, whose backing file is the one named."""
    return [device for device in bound_devices() if device.backing == identity]


def guest_disk_below(rdev: int) -> str | None:
    """The guest disk that a block device is, is a part of or stands on, as people call it; None if there is none."""
    for each in block_layer.stack(rdev):
        if tag := _tag(each):
            return tag.label
    return None


def _tag(rdev: int) -> Tag | None:
    match os.major(rdev):
        case minors.LOOP_MAJOR:
            loop = control.describe(os.minor(rdev))
            return loop.tag if loop else None
        case nbd.MAJOR:
            device = nbd.describe(os.minor(rdev))
            return device.tag if device else None
    return None
