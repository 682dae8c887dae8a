"""Our loop devices on this host: found by their tags, made, and taken down unless in use."""

from reconcilers.actual import FileId
from reconcilers.errors import DiskError
from reconcilers.holders import describe_holders
from reconcilers.loop import control
from reconcilers.loop.control import LoopDevice, LoopNumbers
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey
from reconcilers.tag import Tag, disk_id

DEFAULT_BLOCK_SIZE = 512


class LoopDevices:
    """One instance's loop devices. What is remembered is only where to look; every answer is the kernel's."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._numbers = LoopNumbers()
        self._minors: dict[str, int] = {}

    def survey(self) -> list[LoopDevice]:
        """Look at every bound loop device of the host, and return those that carry this instance's tag."""
        self._numbers.learn()
        ours = [device for device in bound_devices() if device.tag and device.tag.instance == self._instance]
        self._minors = {device.tag.disk: device.minor for device in ours if device.tag}
        return ours

    def find(self, key: DiskKey) -> LoopDevice | None:
        """The device that belongs to a disk; None if there is none, also when it was taken away behind our back."""
        minor = self._minors.get(disk_id(key))
        if minor is None:
            return None
        device = control.describe(minor)
        if device is None or device.tag is None or (device.tag.instance, device.tag.disk) != self._mark(key):
            del self._minors[disk_id(key)]
            return None
        return device

    def key_of_event(self, minor: int) -> str | None:
        """The id of the disk that was last seen on loop device `minor`."""
        return next((disk for disk, number in self._minors.items() if number == minor), None)

    def attach(
        self,
        key: DiskKey,
        backing_fd: int,
        *,
        read_only: bool,
        direct_io: bool = False,
        block_size: int | None = None,
        offset: int = 0,
        size_limit: int | None = None,
    ) -> LoopDevice:
        """Bind a tagged device; the arguments are those of `control.attach`."""
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
        self._minors[disk_id(key)] = device.minor
        return device

    def detach(self, key: DiskKey) -> None:
        """Take a disk's device down; fine if there is none.

        Raises:
            DiskError: DeviceInUse, with who holds it; the device is as it was.
        """
        device = self.find(key)
        if device is None:
            return
        if not control.try_detach(device):
            raise DiskError(Reason.DEVICE_IN_USE, f"{device.path} is {describe_holders(device.path)}")
        del self._minors[disk_id(key)]
        self._numbers.give_back(device.minor)

    def _mark(self, key: DiskKey) -> tuple[str, str]:
        return self._instance, disk_id(key)


def bound_devices() -> list[LoopDevice]:
    """Every bound loop device of the host, ours or not."""
    return [device for minor in control.bound_minors() if (device := control.describe(minor))]


def devices_over(identity: FileId) -> list[LoopDevice]:
    """The loop devices, ours or not, whose backing file is the one named."""
    return [device for device in bound_devices() if device.backing == identity]
