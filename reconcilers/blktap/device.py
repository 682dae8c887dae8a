"""The contract of a tap's device: the block device that is made of what a server exports."""

from dataclasses import dataclass
from typing import Protocol

from reconcilers.blktap.tap import TapFolder
from reconcilers.spec import DiskKey, DiskSpec


@dataclass(frozen=True, slots=True)
class BlockNode:
    """A block device as the kernel describes it; sizes are bytes."""

    path: str
    diskseq: int | None
    size_bytes: int
    logical_block_size: int


class TapDevice(Protocol):
    """Makes, finds and takes down one kind of device. Every method blocks; call it in a thread."""

    def find(self, key: DiskKey) -> BlockNode | None:
        """The disk's device; None if there is none, also when it was taken away behind our back."""

    def glimpse(self, key: DiskKey) -> BlockNode | None:
        """As `find`, without a question to the server, which does not answer."""

    def attach(self, spec: DiskSpec, tap: TapFolder) -> BlockNode:
        """Have a device over what the tap's server exports: one that is there is kept.

        Raises:
            DiskError: What the kernel says against it; nothing is left bound.
        """

    def detach(self, key: DiskKey) -> None:
        """Take the device down; fine if there is none.

        Raises:
            DiskError: DeviceInUse, with who holds it; the device is as it was.
        """
