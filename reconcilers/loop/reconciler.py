"""The `loop` backend: a raw image file, served by the kernel."""

import asyncio

from reconcilers.actual import Attached
from reconcilers.backend import Reconciler, claimed_source
from reconcilers.loop import control
from reconcilers.loop.control import LoopFlags
from reconcilers.loop.devices import LoopDevices
from reconcilers.source import OpenSource
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format
from reconcilers.stable_path import StablePaths

SERVER = "kernel loop"


class LoopReconciler:
    """Raw images through the kernel's loop driver."""

    backend = Backend.LOOP

    def __init__(self, devices: LoopDevices, paths: StablePaths) -> None:
        self._devices = devices
        self._paths = paths

    def observe(self, key: DiskKey) -> Attached | None:
        """See `Reconciler`."""
        device = self._devices.find(key)
        if device is None or device.backing is None:
            return None
        return Attached(
            backend=Backend.LOOP,
            format=Format.RAW,
            identity=device.backing,
            device_path=device.path,
            diskseq=device.diskseq,
            size_bytes=device.size_bytes,
            logical_block_size=device.logical_block_size,
            read_only=LoopFlags.READ_ONLY in device.flags,
            direct_io=LoopFlags.DIRECT_IO in device.flags,
            slice_offset=device.offset,
            slice_size=device.size_limit or None,
            server=SERVER,
            server_alive=True,
            linked=self._paths.read(key) == device.path,
        )

    async def attach(self, spec: DiskSpec, *, replacing: Reconciler | None = None) -> str | None:
        """See `Reconciler`."""
        async with claimed_source(spec, replacing) as checked:
            await asyncio.to_thread(self._bind, spec, checked.image)
            return checked.warning

    async def adopt(self, spec: DiskSpec) -> None:
        """See `Reconciler`."""
        await asyncio.to_thread(self._link, spec.key)

    async def detach(self, key: DiskKey) -> None:
        """See `Reconciler`."""
        await asyncio.to_thread(self._unbind, key)

    async def grow(self, key: DiskKey) -> None:
        """See `Reconciler`."""
        device = await asyncio.to_thread(self._devices.find, key)
        if device is not None:
            await asyncio.to_thread(control.grow, device)

    def _bind(self, spec: DiskSpec, image: OpenSource) -> None:
        device = self._devices.attach(
            spec.key,
            image.fd,
            read_only=spec.read_only,
            direct_io=spec.direct_io,
            block_size=spec.logical_block_size,
            offset=spec.slice_offset,
            size_limit=spec.slice_size,
        )
        self._paths.point(spec.key, device.path)

    def _link(self, key: DiskKey) -> None:
        device = self._devices.find(key)
        if device is not None:
            self._paths.point(key, device.path)

    def _unbind(self, key: DiskKey) -> None:
        self._devices.detach(key)
        self._paths.remove(key)
