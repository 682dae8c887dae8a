"""The `loop` backend: a raw image file, served by the kernel."""

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

from reconcilers.actual import Attached, FileId
from reconcilers.backend import Reconciler, claimed_source, open_and_check
from reconcilers.loop import control
from reconcilers.loop.control import LoopDevice
from reconcilers.loop.devices import LoopDevices
from reconcilers.source import OpenSource, Pin
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format
from reconcilers.stable_path import StablePaths
from reconcilers.tuning import Aio, Cache, Tuning

SERVER = "kernel loop"


class Bound(NamedTuple):
    """A disk that has been brought up: what is there now, and what people should know of its image."""

    attached: Attached
    warning: str | None


class LoopReconciler:
    """Raw images through the kernel's loop driver."""

    backend = Backend.LOOP

    def __init__(self, devices: LoopDevices, paths: StablePaths) -> None:
        self._devices = devices
        self._paths = paths
        self._asked: dict[DiskKey, Tuning] = {}

    def observe(self, key: DiskKey) -> Attached | None:
        """See `Reconciler`."""
        device = self._devices.find(key)
        if device is None or device.backing is None:
            return None
        return self._attached(key, device, device.backing, linked=self._paths.read(key) == device.path)

    def _attached(self, key: DiskKey, device: LoopDevice, backing: FileId, *, linked: bool) -> Attached:
        tuning = _tuning(device)
        return Attached(
            backend=Backend.LOOP,
            format=Format.RAW,
            identity=backing,
            device_path=device.path,
            diskseq=device.diskseq,
            size_bytes=device.size_bytes,
            logical_block_size=device.logical_block_size,
            read_only=device.read_only,
            tuning=tuning,
            asked=self._asked.get(key) or _asked(device, tuning),
            slice_offset=device.offset,
            slice_size=device.size_limit or None,
            server=SERVER,
            server_alive=not device.dead,
            linked=linked,
        )

    async def attach(self, spec: DiskSpec, pin: Pin, *, replacing: Reconciler | None = None) -> str | None:
        """See `Reconciler`."""
        if replacing is None:
            return (await asyncio.to_thread(self.attach_here, spec, pin)).warning
        async with claimed_source(spec, pin, replacing) as checked:
            await asyncio.to_thread(self._bind, spec, checked.image)
            return checked.verdict.warning

    def attach_here(self, spec: DiskSpec, pin: Pin) -> Bound:
        """As `attach`, for a disk that is not there, and in a thread already: the kernel does it all at once."""
        with ExitStack() as stack:
            checked = open_and_check(spec, pin, stack, claimed=True)
            device = self._bind(spec, checked.image)
            attached = self._attached(spec.key, device, pin.source.identity, linked=True)
            return Bound(attached, checked.verdict.warning)

    async def adopt(self, spec: DiskSpec) -> None:
        """See `Reconciler`."""
        await asyncio.to_thread(self._link, spec.key)

    async def detach(self, key: DiskKey) -> None:
        """See `Reconciler`."""
        await asyncio.to_thread(self._unbind, key)

    async def grow(self, key: DiskKey, size_bytes: int) -> None:
        """See `Reconciler`. The kernel asks the file itself."""
        del size_bytes
        await asyncio.to_thread(self._devices.grow, key)

    async def tune(self, spec: DiskSpec) -> None:
        """See `Reconciler`."""
        await asyncio.to_thread(self._tune, spec)

    def _bind(self, spec: DiskSpec, image: OpenSource) -> LoopDevice:
        device = self._devices.attach(
            spec.key,
            image.fd,
            read_only=spec.read_only,
            direct_io=spec.tuning.cache.direct,
            discard=spec.tuning.discard,
            block_size=spec.logical_block_size,
            offset=spec.slice_offset,
            size_limit=spec.slice_size,
        )
        self._asked[spec.key] = spec.tuning
        self._paths.point(spec.key, device.path)
        return device

    def _link(self, key: DiskKey) -> None:
        device = self._devices.find(key)
        if device is not None:
            self._paths.point(key, device.path)

    def _tune(self, spec: DiskSpec) -> None:
        device = self._devices.find(spec.key)
        if device is not None:
            control.set_direct_io(device, spec.tuning.cache.direct)
            if not spec.tuning.discard:
                control.stop_discard(device)
        self._asked[spec.key] = spec.tuning

    def _unbind(self, key: DiskKey) -> None:
        if (device := self._devices.find(key)) and device.dead:
            self._paths.remove(key)  # first, as a device that gives nothing but errors goes when its last user does
        self._devices.detach(key)
        self._asked.pop(key, None)
        self._paths.remove(key)


def _asked(device: LoopDevice, tuning: Tuning) -> Tuning:
    """What an earlier agent must have asked for, as far as the device tells."""
    return replace(tuning, io=None, discard=tuning.discard or not control.discard_stopped(device))


def _tuning(device: LoopDevice) -> Tuning:
    cache, io = (Cache.NONE, Aio.NATIVE) if device.direct_io else (Cache.WRITEBACK, Aio.THREADS)
    return Tuning(cache=cache, io=io, discard=control.discards(device))
