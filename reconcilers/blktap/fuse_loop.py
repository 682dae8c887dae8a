"""A loop device over the file that a server exports by FUSE: every Linux has both.

The device is buffered: direct I/O on a loop device over the storage daemon's FUSE export loses writes with the
versions that Debian 12 and 13 ship (measured with 7.2.22 and 10.0.2).
"""

import os

from reconcilers.blktap.device import BlockNode
from reconcilers.blktap.tap import TapFolder
from reconcilers.loop.control import LoopDevice
from reconcilers.loop.devices import LoopDevices
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

    def detach(self, key: DiskKey) -> None:
        """See `TapDevice`."""
        self._devices.detach(key)


def _node(device: LoopDevice) -> BlockNode:
    return BlockNode(device.path, device.diskseq, device.size_bytes, device.logical_block_size)
