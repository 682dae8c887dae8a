"""Who has a block device of the host's: those whom tapster gave it to, loop devices, and programs that opened it."""

import os
import select
from typing import NamedTuple

from reconcilers.actual import FileId
from reconcilers.holders import GLANCE_SECONDS, DeviceHolders
from reconcilers.image_lock import used_by_another
from reconcilers.loop.control import LoopDevice
from reconcilers.spec import DiskSpec


class User(NamedTuple):
    """A disk or loop device that has a block device.

    Attributes:
        disk: The id of this agent's disk; None if it is no disk of this agent's.
        who: What people call it.
        read_only: It only reads.
        shareable: It lets others write who let it write.
    """

    disk: str | None
    who: str
    read_only: bool
    shareable: bool

    def goes_with(self, spec: DiskSpec) -> bool:
        """Whether a disk may have the device beside it."""
        return (spec.shareable and self.shareable) or (spec.read_only and self.read_only)


def loop_user(disk: str | None, device: LoopDevice, rdev: int) -> User:
    """A loop device as a user of block device `rdev`. Whether a disk of ours is shareable, its locks on that tell."""
    who = f"guest disk {device.tag.label}" if device.tag else "a loop device that tapster did not make"
    tells = device.tag is not None and device.backing == FileId(rdev, 0)
    return User(disk, f"{who} ({device.path})", device.read_only, shareable=tells)


def programs_on(node: str, spec: DiskSpec | None = None, *, known: bool = False) -> DeviceHolders | None:
    """Who has a device open without having asked for it alone, as QEMU does; None if nobody has.

    Only its locks or its open file tell of one that opened a device as anybody does. One that has locked it and can't
    be seen from here has no name.

    Who only looks at it, as udev does when a writer has closed it, is waited for.

    Args:
        node: The device.
        spec: How it is to be used; None if nobody else may have it at all.
        known: Others are known to have it open, and it is to be shared with them: only their locks count.
    """
    found = _programs_on(node, spec, known=known)
    for pause in GLANCE_SECONDS:
        if found is None:
            break
        select.select((), (), (), pause)  # see `holders.keepers`
        found = _programs_on(node, spec, known=known)
    return found


def _programs_on(node: str, spec: DiskSpec | None, *, known: bool) -> DeviceHolders | None:
    locked = _is_locked(node, spec)
    holders = DeviceHolders((), (), ()) if known else DeviceHolders.of(node)
    return holders if locked or holders.processes else None


def _is_locked(node: str, spec: DiskSpec | None) -> bool:
    read_only, shareable = (spec.read_only, spec.shareable) if spec else (False, False)
    try:
        fd = os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # whoever asks has just opened it, so it went at this moment
        return False
    try:
        return used_by_another(fd, read_only=read_only, shareable=shareable)
    finally:
        os.close(fd)
