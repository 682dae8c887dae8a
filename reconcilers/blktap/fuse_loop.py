"""A loop device over the file that a server exports by FUSE: every Linux has both.

The device is buffered: direct I/O on a loop device over the storage daemon's FUSE export loses writes with the
versions that Debian 12 and 13 ship (measured with 7.2.22 and 10.0.2).
"""

import os

from reconcilers.blktap.device import BlockNode
from reconcilers.blktap.tap import TapFolder
from reconcilers.errors import DiskError
from reconcilers.fallocate import fallocate
from reconcilers.fresh import fresh_size
from reconcilers.loop.control import LoopDevice
from reconcilers.loop.devices import LoopDevices
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey, DiskSpec


class FuseLoop:
    """Loop devices over FUSE exports."""

    def __init__(self, devices: LoopDevices) -> None:
        """Args: where the loop backend has its devices too, since all bear one mark."""
        self._devices = devices

    def find(self, key: DiskKey) -> BlockNode | None:
        """See `TapDevice`."""
        device = self._devices.find(key)
        return _node(device) if device else None

    def glimpse(self, key: DiskKey) -> BlockNode | None:
        """See `TapDevice`."""
        device = self._devices.glimpse(key)
        return _node(device) if device else None

    def attach(self, spec: DiskSpec, tap: TapFolder) -> BlockNode:
        """See `TapDevice`."""
        if node := self.find(spec.key):
            return node
        export = tap.open_export(os.O_RDONLY if spec.read_only else os.O_RDWR)
        try:
            device = self._devices.attach(
                spec.key, export, read_only=spec.read_only, block_size=spec.logical_block_size
            )
        finally:
            os.close(export)
        return _node(device)

    def grow(self, key: DiskKey, tap: TapFolder, size_bytes: int) -> None:
        """Have the server take on its image's new length, and then the device.

        The end of the export is moved by way of fallocate(2), as QEMU then sets the image's length only if that does
        not cut it (block/file-posix.c, preallocation): an image may grow on while we are at it. `block_resize` would
        cut it, and what was appended meanwhile would be lost.

        Raises:
            DiskError: KernelError if the image has another length by now.
        """
        export = tap.open_export(os.O_RDWR)
        try:
            if (known := os.fstat(export).st_size) < size_bytes:
                fallocate(export, 0, known, size_bytes - known)
        except OSError as error:
            message = (
                f"the server of {key} did not take on {size_bytes} bytes: {error.strerror}; does its image grow on?"
            )
            raise DiskError(Reason.KERNEL_ERROR, message) from error
        finally:
            os.close(export)
        self._devices.grow(key)

    def follow(self, key: DiskKey, tap: TapFolder) -> None:
        """Let the device take on the size of a server whose image was made larger."""
        export = tap.open_export(os.O_RDONLY)
        try:
            fresh_size(export)  # or the kernel would take the size that it remembers, for up to a second
        finally:
            os.close(export)
        self._devices.grow(key)

    def detach(self, key: DiskKey) -> None:
        """See `TapDevice`."""
        self._devices.detach(key)


def _node(device: LoopDevice) -> BlockNode:
    return BlockNode(device.path, device.diskseq, device.size_bytes, device.logical_block_size)
