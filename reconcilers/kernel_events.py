"""What the kernel says about block devices, without udev: netlink group 1 of NETLINK_KOBJECT_UEVENT.

A loop device tells of its end with a `change` (drivers/block/loop.c, `__loop_clr_fd`), any other device with `remove`.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pyudev


class KernelEvents:
    """Calls `on_device` with the node of each block device about which the kernel says anything.

    Use it as a context manager in a running event loop. Events can be lost when very many come at once (ENOBUFS), so
    they only save time; a slow resync is still needed.
    """

    def __init__(self, on_device: Callable[[str], None]) -> None:
        self._on_device = on_device
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        self._monitor.filter_by("block")

    def __enter__(self) -> Self:
        self._monitor.start()
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._monitor.fileno())

    def _read(self) -> None:
        while (device := self._monitor.poll(timeout=0)) is not None:
            if device.device_node:
                self._on_device(device.device_node)
