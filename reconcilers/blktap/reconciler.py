"""The `blktap` backend: one server process per disk, and a block device made of what it exports."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from reconcilers.actual import Attached, FileId, Hold
from reconcilers.backend import CheckedSource, Reconciler, claimed_source
from reconcilers.blktap.abilities import TapAbilities
from reconcilers.blktap.crashes import Crashes
from reconcilers.blktap.device import TapDevice
from reconcilers.blktap.facts import facts_of
from reconcilers.blktap.fuse_loop import FuseLoop
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.blktap.nbd.devices import NbdDevices, survives_its_server
from reconcilers.blktap.nbd_socket.devices import NbdSockets
from reconcilers.blktap.server import TapServer
from reconcilers.blktap.stillness import flush
from reconcilers.blktap.tap import TAPS, TapFolder, TapLayer, TapRecord
from reconcilers.blktap.watches import TapWatches
from reconcilers.errors import DiskError
from reconcilers.holds import HoldRequests
from reconcilers.loop.devices import DEFAULT_BLOCK_SIZE
from reconcilers.reason import Reason
from reconcilers.source import Pin
from reconcilers.spec import Backend, DiskKey, DiskSpec, Layer
from reconcilers.stable_path import StablePaths
from reconcilers.tuning import Limits, waits

log: structlog.stdlib.BoundLogger = structlog.get_logger()

ANSWER_SECONDS = 2.0
"""How long a server may take to answer that it is there; it takes a millisecond where no limit has it wait."""


class BlktapReconciler:
    """Images of any format through a server each."""

    backend = Backend.BLKTAP

    def __init__(
        self,
        runtime: Path,
        abilities: TapAbilities,
        *,
        fuse_loop: FuseLoop,
        nbd: NbdDevices,
        sockets: NbdSockets,
        paths: StablePaths,
        requests: HoldRequests,
        patience: float,
        on_server_change: Callable[[DiskKey], None],
    ) -> None:
        """Args as they are; `patience` is how many seconds a server may take to start or to end."""
        self._taps = runtime / TAPS
        self.learn(abilities)
        self._fuse_loop = fuse_loop
        self._devices: dict[DeviceKind, TapDevice] = {
            DeviceKind.FUSE_LOOP: fuse_loop,
            DeviceKind.NBD: nbd,
            DeviceKind.NBD_SOCKET: sockets,
        }
        self._paths = paths
        self._requests = requests
        self._patience = patience
        self._crashes = Crashes(time.monotonic)
        self._watches = TapWatches(self._crashes, on_server_change)

    def learn(self, abilities: TapAbilities) -> None:
        """Go by what can be had by now."""
        self._abilities = abilities
        self._servers = abilities.every_server()

    def survey(self) -> list[DiskKey]:
        """Every disk that has a tap's folder with a record."""
        return [record.key for record in self.records()]

    def records(self) -> list[TapRecord]:
        """What every tap serves."""
        records = (TapFolder(path).record() for path in self._taps.glob("*"))
        return [record for record in records if record]

    def sweep(self) -> None:
        """Clear away the folders of taps that were being made or removed when their agent was killed."""
        for path in self._taps.glob("*"):
            tap = TapFolder(path)
            if tap.record() is None and not tap.alive():
                with suppress(OSError):  # it is in nobody's way
                    tap.remove()

    def observe(self, key: DiskKey) -> Attached | None:
        """See `Reconciler`."""
        tap = TapFolder.of(self._taps, key)
        record = tap.record()
        if record is None:
            return None
        held, until = tap.held(), self._requests.until(key)
        devices, fuse = self._devices[record.device_kind], record.device_kind is DeviceKind.FUSE_LOOP
        device = devices.find(key) if held is None else devices.glimpse(key)
        # An export can be taken away from a server that goes on; one that has no device yet may be just starting.
        alive = tap.alive() and (device is None or not fuse or held is not None or tap.exports())
        wanted = device is not None and self._requests.path(key).exists()
        return Attached(
            backend=Backend.BLKTAP,
            format=record.format,
            identity=record.identity,
            device_path=device.path if device else None,
            diskseq=device.diskseq if device else None,
            size_bytes=device.size_bytes if device else 0,
            logical_block_size=device.logical_block_size if device else DEFAULT_BLOCK_SIZE,
            read_only=record.read_only,
            tuning=record.tuning,
            asked=record.asked,
            slice_offset=record.slice_offset,
            slice_size=record.slice_size,
            server=record.server,
            below=tuple((Layer(one.source, one.format), FileId(one.device, one.inode)) for one in record.below),
            server_alive=alive,
            tap=facts_of(tap, record, alive=alive),
            awaits_server=not alive and device is not None and not fuse and survives_its_server(record),
            damage=tap.damage(),
            hold=Hold(until, held=held is True) if wanted or held is not None else None,
            linked=device is not None and self._paths.read(key) == device.path and not tap.reconnecting(),
        )

    async def attach(self, spec: DiskSpec, pin: Pin, *, replacing: Reconciler | None = None) -> str | None:
        """See `Reconciler`."""
        self._crashes.refuse_too_soon(spec.key)
        async with claimed_source(spec, pin, replacing) as checked:
            tap = await asyncio.to_thread(self._prepare, spec, checked)
            try:
                await self._server(tap).spawn(tap, _descriptors(checked), within=self._patience)
            except DiskError:
                await asyncio.to_thread(tap.remove)
                raise
        self._watches.begin(spec.key, tap, await asyncio.to_thread(tap.process_ids))
        try:
            await asyncio.to_thread(self._bind, spec, tap)
        except DiskError:
            await self.detach(spec.key)
            raise
        return checked.verdict.warning

    async def revive(self, spec: DiskSpec, pin: Pin) -> None:
        """Start another server behind a device whose requests wait for one, or do once its server was stopped.

        The device stays whatever goes wrong, and its requests wait on.
        """
        tap = TapFolder.of(self._taps, spec.key)
        if not await asyncio.to_thread(tap.alive):
            await self._watches.end_noted(spec.key)
        self._crashes.refuse_too_soon(spec.key)
        await self._stop(tap, spec.key)  # with it go the image's locks
        async with claimed_source(spec, pin, None) as checked:
            await asyncio.to_thread(self._renew, tap, checked)
            await self._server(tap).spawn(tap, _descriptors(checked), within=self._patience)
        self._watches.begin(spec.key, tap, await asyncio.to_thread(tap.process_ids))
        await asyncio.to_thread(self._bind, spec, tap)

    async def adopt(self, spec: DiskSpec) -> None:
        """See `Reconciler`."""
        tap = TapFolder.of(self._taps, spec.key)
        try:
            await self._server(tap).ready(tap, within=self._patience)
        except DiskError as error:
            if error.reason is Reason.SERVER_FAILED and await asyncio.to_thread(self._has_no_device, spec.key, tap):
                await self.detach(spec.key)  # cut short when it was made, so that the next try begins anew
            raise
        await asyncio.to_thread(self._bind, spec, tap)

    def watch_adopted(self, key: DiskKey) -> None:
        """Be told when the server of a disk that an earlier agent brought up ends."""
        tap = TapFolder.of(self._taps, key)
        if key not in self._watches and tap.alive():
            with suppress(DiskError):  # it is being started, and then watched, or ending at this moment
                self._watches.begin(key, tap, tap.process_ids())

    async def hangs(self, key: DiskKey) -> bool:
        """Whether the disk's server runs and does not answer."""
        tap = TapFolder.of(self._taps, key)
        if await asyncio.to_thread(tap.held) is not None or not await asyncio.to_thread(tap.alive):
            return False
        return not await self._server(tap).answers(tap, within=await asyncio.to_thread(_answer_seconds, tap))

    async def detach(self, key: DiskKey) -> None:
        """See `Reconciler`. The device first and for certain, then the server: what it got is flushed when it ends."""
        if not await asyncio.to_thread(self._unbind, key):
            await self._watches.end_noted(key)
        tap = TapFolder.of(self._taps, key)
        await self._stop(tap, key)
        await asyncio.to_thread(tap.remove)

    async def _stop(self, tap: TapFolder, key: DiskKey) -> None:
        """End a server, or clear away what is left of one."""
        with self._watches.ending(key):
            await self._server(tap).stop(tap, within=self._patience)

    async def grow(self, key: DiskKey, size_bytes: int) -> None:
        """See `Reconciler`. Planned only where the device is a loop device."""
        tap = TapFolder.of(self._taps, key)
        await asyncio.to_thread(self._fuse_loop.grow, key, tap, size_bytes)

    async def enlarge(self, spec: DiskSpec, pin: Pin, size_bytes: int) -> None:
        """Make the image larger by its server, and then the device.

        Over NBD a size is agreed on once for each connection, so a hypervisor that is connected would not learn of it.

        Raises:
            DiskError: DeviceInUse if a hypervisor is connected; what the server says against it.
        """
        tap = TapFolder.of(self._taps, spec.key)
        record = await asyncio.to_thread(tap.record)
        if record and record.device_kind is DeviceKind.NBD_SOCKET:
            await asyncio.to_thread(self._device(tap).detach, spec.key)
            try:
                await self._server(tap).resize(tap, size_bytes, within=self._patience)
            finally:
                await self.revive(spec, pin)
        else:
            await self._server(tap).resize(tap, size_bytes, within=self._patience)
            await asyncio.to_thread(self._fuse_loop.follow, spec.key, tap)

    async def quiesce(self, key: DiskKey) -> None:
        """Flush a disk and keep its server from writing, until `resume`. It goes on if that can't be done.

        Raises:
            DiskError: The server can't be held.
        """
        tap = TapFolder.of(self._taps, key)
        server, device = self._server(tap), await asyncio.to_thread(self._device(tap).glimpse, key)
        if device is None:
            raise DiskError(Reason.DEVICE_VANISHED, f"{key} has no device")
        if await asyncio.to_thread(tap.held) is not None:  # an agent that was killed may have held it without a flush
            await server.release(tap, within=self._patience)
        await asyncio.to_thread(tap.note_hold, done=False)
        try:
            await asyncio.to_thread(_flush, tap, device.path)
            await server.hold(tap, within=self._patience)
            await asyncio.to_thread(tap.note_hold, done=True)
        except (DiskError, OSError):
            await self.resume(key)
            raise

    async def resume(self, key: DiskKey) -> None:
        """Let a disk go on, whose request is over, was taken back or can't be met."""
        tap = TapFolder.of(self._taps, key)
        await self._server(tap).release(tap, within=self._patience)
        await asyncio.to_thread(self._requests.forget, key)
        await asyncio.to_thread(tap.note_release)

    async def tune(self, spec: DiskSpec) -> None:
        """See `Reconciler`. Planned only for limits."""
        tap, limits = TapFolder.of(self._taps, spec.key), spec.tuning.limits
        await self._server(tap).set_limits(tap, limits, within=self._patience)
        await asyncio.to_thread(_write_limits, tap, limits)

    async def close(self) -> None:
        """Stop watching; the servers go on."""
        await self._watches.close()

    def _prepare(self, spec: DiskSpec, checked: CheckedSource) -> TapFolder:
        tap = TapFolder.of(self._taps, spec.key)
        if spec.format is None:
            raise AssertionError(f"{spec.key} has no format")
        image = checked.image
        tap.remove()  # what an attempt that was cut short has left
        self._requests.forget(spec.key)  # who held the one before was let down, and is to notice
        server_kind, device_kind = self._abilities.choose(spec)
        server = self._servers[server_kind]
        tap.prepare(
            TapRecord(
                guest=spec.key.guest,
                target=spec.key.target,
                source=image.path,
                device=image.source.identity.device,
                inode=image.source.identity.inode,
                format=spec.format,
                read_only=spec.read_only,
                slice_offset=spec.slice_offset,
                slice_size=spec.slice_size,
                raw_size=checked.verdict.raw_size,
                below=_layers(spec, checked),
                server=server.version,
                server_kind=server_kind,
                device_kind=device_kind,
                asked=spec.tuning,
                tuning=server.grant(spec, image, device_kind),
                throttled=server_kind is ServerKind.STORAGE_DAEMON,
            )
        )
        return tap

    def _renew(self, tap: TapFolder, checked: CheckedSource) -> None:
        record = tap.record()
        if record and tap.held() is not None:
            self._requests.forget(record.key)  # as of a new one: waiting writes reach the image before it is held again
        tap.note_release()
        if record is None:
            message = f"there is no record of what {tap.path} served; take the disk down and bring it up again"
            raise DiskError(Reason.SERVER_LOST, message)
        _refuse_another_image(record, checked)
        throttled = record.server_kind is ServerKind.STORAGE_DAEMON
        changed = {"server": self._servers[record.server_kind].version, "throttled": throttled}
        tap.renew(record.model_copy(update=changed))

    def _bind(self, spec: DiskSpec, tap: TapFolder) -> None:
        device = self._device(tap)
        node = device.attach(spec, tap)
        self._paths.point(spec.key, node.path)

    def _has_no_device(self, key: DiskKey, tap: TapFolder) -> bool:
        return self._device(tap).find(key) is None

    def _unbind(self, key: DiskKey) -> bool:
        """Take the device away; whether its server lives."""
        tap, there = TapFolder.of(self._taps, key), self.observe(key)
        lives = there is not None and there.server_alive
        if not lives:  # of a server that is ending the lock is the last to go
            # Its device gives nothing but EIO and goes by itself when the last user lets go; until then nobody new
            # shall find it, nor what the kernel makes under its number afterwards.
            self._paths.remove(key)
        self._device(tap).detach(key)
        self._paths.remove(key)
        return lives

    def _server(self, tap: TapFolder) -> TapServer:
        record = tap.record()
        return self._servers[record.server_kind if record else ServerKind.STORAGE_DAEMON]

    def _device(self, tap: TapFolder) -> TapDevice:
        record = tap.record()
        return self._devices[record.device_kind if record else DeviceKind.FUSE_LOOP]


def _descriptors(checked: CheckedSource) -> list[int]:
    return [each.image.fd for each in (checked, *checked.below)]


def _layers(spec: DiskSpec, checked: CheckedSource) -> tuple[TapLayer, ...]:
    return tuple(
        TapLayer(
            source=layer.path,
            device=each.image.source.identity.device,
            inode=each.image.source.identity.inode,
            format=layer.format,
            raw_size=each.verdict.raw_size,
        )
        for layer, each in zip(spec.chain, checked.below, strict=True)
    )


def _refuse_another_image(record: TapRecord, checked: CheckedSource) -> None:
    """Whoever waits for a server goes on where it was, so each image must be the very file that it was, bases too."""
    before = (record.identity, *(FileId(layer.device, layer.inode) for layer in record.below))
    for had, each in zip(before, (checked, *checked.below), strict=True):
        if each.image.source.identity != had:
            raise DiskError(
                Reason.IMAGE_MISSING,
                f"{each.image.path} is another file than the disk had until now ({had}), and its user would go on with "
                "a mixture of both; put the file back, or take the disk down and bring it up again",
            )


def _answer_seconds(tap: TapFolder) -> float:
    record = tap.record()
    return ANSWER_SECONDS + max(waits(record.tuning.limits).values(), default=0) if record else ANSWER_SECONDS


def _flush(tap: TapFolder, device_path: str) -> None:
    """Nothing of the host's stands in front of a socket, and what its server has is flushed when it is held."""
    record = tap.record()
    if record and record.device_kind is not DeviceKind.NBD_SOCKET:
        flush(device_path)


def _write_limits(tap: TapFolder, limits: Limits) -> None:
    record = tap.record()
    if record is not None:
        asked, tuning = replace(record.asked, limits=limits), replace(record.tuning, limits=limits)
        tap.write(record.model_copy(update={"asked": asked, "tuning": tuning, "throttled": True}))
