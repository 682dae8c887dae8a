"""Tells which disks to look at again: something happened to them behind our back, or nothing does for too long."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import structlog

from reconcilers.actual import Attached
from reconcilers.blktap.nbd.devices import NbdDevices
from reconcilers.file_events import FileEvents, Writer
from reconcilers.growth import GrowRequests
from reconcilers.holds import HoldRequests
from reconcilers.kernel_events import KernelEvents, Uevent
from reconcilers.kernel_log import KernelLog
from reconcilers.loop.devices import LoopDevices
from reconcilers.pools import Pools
from reconcilers.requests import RequestEvents
from reconcilers.sightings import Sightings
from reconcilers.spec import DiskKey
from reconcilers.stall import StallWatch
from reconcilers.trigger import Trigger

log: structlog.stdlib.BoundLogger = structlog.get_logger()

STALL_SECONDS = 5.0
"""How long a request may be in flight with nothing finished before its disk is looked at."""


class HostWatch:
    """What the kernel and people tell of this host's disks. Without `watching`, nothing is told and nothing fails."""

    def __init__(
        self,
        sightings: Sightings,
        *,
        loops: LoopDevices,
        nbds: NbdDevices,
        holds: HoldRequests,
        grows: GrowRequests,
        pools: Pools,
        on_change: Callable[[DiskKey, Trigger], None],
    ) -> None:
        """Args as they are; `on_change` is called in the event loop."""
        self._sightings = sightings
        self._loops = loops
        self._nbds = nbds
        self._holds = holds
        self._grows = grows
        self._pools = pools
        self._on_change = on_change
        self._files: FileEvents | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be told of devices, images and requests for the length of the block."""
        with (
            KernelEvents(self._device_changed),
            KernelLog(self._request_failed),
            RequestEvents(self._holds.folder, lambda disk: self._tell(disk, Trigger.COMMAND)),
            RequestEvents(self._grows.folder, lambda disk: self._tell(disk, Trigger.COMMAND)),
            FileEvents(self._on_change, self._pools) as self._files,
        ):
            yield
        self._files = None

    async def stalls(self) -> NoReturn:
        """Report, for ever, disks whose requests wait, or that have been held for long enough: of neither is told."""
        stalls = StallWatch()
        while True:
            await asyncio.sleep(STALL_SECONDS)
            seen = self._sightings.all()
            for key in [key for key, one in seen if one.hold and self._holds.until(key) is None]:
                log.warning("nobody has let the disk go on in time, so the agent does", disk=str(key))
                self._on_change(key, Trigger.COMMAND)
            devices = {key: one.node for key, one in seen if one.node and not one.hold}
            for key in await asyncio.to_thread(stalls.look, devices):
                self._sightings.suspects.add(key)
                self._on_change(key, Trigger.SERVER)

    def follow(self, key: DiskKey, source_path: str | None, attached: Attached | None) -> None:
        """Tell of a disk's source from now on; to be called before we look at what the path refers to."""
        if self._files:
            self._files.follow(key, source_path, writer=Writer.of(attached))

    def follow_length(self, key: DiskKey, image: int | None) -> bool:
        """See `FileEvents.follow_length`."""
        return self._files is not None and self._files.follow_length(key, image)

    def tell_of_release(self, key: DiskKey, device_path: str) -> None:
        """See `FileEvents.tell_of_release`."""
        if self._files:
            self._files.tell_of_release(key, device_path)

    def forget_release(self, key: DiskKey) -> None:
        """See `FileEvents.forget_release`."""
        if self._files:
            self._files.forget_release(key)

    def tell_of_writer(self, key: DiskKey) -> None:
        """See `FileEvents.tell_of_writer`."""
        if self._files:
            self._files.tell_of_writer(key)

    def _device_changed(self, uevent: Uevent) -> None:
        kind = uevent.node.rstrip("0123456789")
        number = uevent.node.removeprefix(kind)
        disk = None
        if kind == "/dev/loop" and number:
            disk = self._loops.lost(int(number), uevent.diskseq)
        elif kind == "/dev/nbd" and number:
            disk = self._nbds.lost(int(number))
        self._tell(disk, Trigger.KERNEL)
        for key in self._sightings.passed_through(uevent.node):
            self._on_change(key, Trigger.KERNEL)

    def _request_failed(self, node: str) -> None:
        for key in [key for key, one in self._sightings.all() if one.device_path == node]:
            self._on_change(key, Trigger.KERNEL)

    def _tell(self, disk: str | None, trigger: Trigger) -> None:
        if disk and (key := self._sightings.key_of(disk)):
            self._on_change(key, trigger)
