"""This host's disks: observe one, carry out one step, and find everything that is ours.

The only place that knows all three backends. Nothing here decides; `plan` does.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from reconcilers import block_layer
from reconcilers.abilities import HostAbilities
from reconcilers.actual import Actual, Attached, Fault, FileId, Source, SourceKind
from reconcilers.backend import Reconciler
from reconcilers.blktap.fuse_loop import FuseLoop
from reconcilers.blktap.nbd.control import NbdDevice
from reconcilers.blktap.nbd.devices import NbdDevices
from reconcilers.blktap.nbd_socket.clients import Queue
from reconcilers.blktap.nbd_socket.devices import NbdSockets
from reconcilers.blktap.reconciler import BlktapReconciler
from reconcilers.blktap.tap import TAPS
from reconcilers.block import BlockReconciler
from reconcilers.errors import DiskError
from reconcilers.file_events import Writer
from reconcilers.growth import GrowRequests, extend, is_raw, refuse_to_grow
from reconcilers.holders import DeviceHolders
from reconcilers.holds import HoldRequests
from reconcilers.host_watch import HostWatch
from reconcilers.look import Look, Orphan
from reconcilers.loop.control import LoopDevice
from reconcilers.loop.devices import LoopDevices
from reconcilers.loop.reconciler import LoopReconciler
from reconcilers.plan import (
    Adopt,
    Attach,
    Detach,
    Enlarge,
    Grow,
    Keep,
    Nothing,
    Quiesce,
    Refuse,
    Replace,
    Resume,
    Revive,
    Step,
    Tune,
    Unlink,
    plan,
)
from reconcilers.pools import Pools
from reconcilers.reason import Reason
from reconcilers.sightings import Sightings
from reconcilers.sole_agent import lock_folder
from reconcilers.source import Pin, file_now, judged, pinned
from reconcilers.spec import Backend, DiskKey, DiskSpec, Layer
from reconcilers.stable_path import StablePaths
from reconcilers.tag import disk_id
from reconcilers.trigger import Trigger
from reconcilers.turns import Turns

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Host:
    """The disks of one instance on this host."""

    def __init__(
        self,
        runtime: Path,
        instance: str,
        abilities: HostAbilities,
        pools: Pools,
        *,
        server_patience: float,
        nbd_grace: int,
        socket_group: str | None,
        on_change: Callable[[DiskKey, Trigger], None],
    ) -> None:
        """Nothing is touched yet.

        Args:
            runtime: Folder of stable paths, taps and claims; it is lost at a reboot, as the devices are.
            instance: From `tag.instance_id`.
            abilities: From `probe`.
            pools: Where sources may be.
            server_patience: Seconds that a tap's server may take to start or end.
            nbd_grace: Seconds that requests to an nbd device wait for another server when theirs has died.
            socket_group: Who may connect to disks that are sockets, besides root.
            on_change: Called in the event loop when something happened to a disk behind our back.
        """
        self._runtime = runtime
        self._abilities = abilities
        self._on_change = on_change
        self._sightings = Sightings()
        self._turns = Turns()
        self._pools = pools
        self.paths = StablePaths(runtime / "disks")
        self._devices = LoopDevices(instance, runtime)
        self._requests = HoldRequests(runtime)
        self._grows = GrowRequests(runtime)
        self._nbd = NbdDevices(instance, grace=nbd_grace)
        self._queue = Queue(lambda key: on_change(key, Trigger.SERVER))
        self._loop = LoopReconciler(self._devices, self.paths)
        self._blktap = BlktapReconciler(
            runtime,
            abilities.taps,
            fuse_loop=FuseLoop(self._devices),
            nbd=self._nbd,
            sockets=NbdSockets(runtime / TAPS, socket_group),
            paths=self.paths,
            requests=self._requests,
            patience=server_patience,
            on_server_change=lambda key: on_change(key, Trigger.SERVER),
        )
        self._block = BlockReconciler(runtime / "claims", self.paths, loops=self._devices, taps=self._blktap.records)
        self._by_backend: dict[Backend, Reconciler] = {
            reconciler.backend: reconciler for reconciler in (self._loop, self._blktap, self._block)
        }
        self.watch = HostWatch(
            self._sightings,
            loops=self._devices,
            nbds=self._nbd,
            holds=self._requests,
            grows=self._grows,
            pools=pools,
            on_change=on_change,
        )

    def learn(self, abilities: HostAbilities) -> None:
        """Go by what the host can do by now."""
        self._abilities = abilities
        self._blktap.learn(abilities.taps)

    @contextmanager
    def owned_runtime(self) -> Iterator[None]:
        """Keep other agents off this runtime folder for the length of the block, and clear away what others left.

        Raises:
            DiskError: SourceInUse if another agent has it, PermissionDenied if it can't be written.
        """
        fd = lock_folder(self._runtime)
        try:
            for part in (self.paths, self._blktap, self._block):
                part.sweep()  # only now: nothing is being made at this moment
            yield
        finally:
            os.close(fd)

    async def survey(self, known: set[DiskKey]) -> tuple[set[DiskKey], list[Orphan]]:
        """Find everything that is ours on this host, whatever made it and when.

        Args:
            known: Disks that documents name; a device's tag can only be recognised, not read back.

        Returns:
            The disks that have something here, and devices whose disk can't be told.
        """
        found, orphans = await asyncio.to_thread(self._survey, known)
        for key in found:
            self._blktap.watch_adopted(key)
        return found, orphans

    def _survey(self, known: set[DiskKey]) -> tuple[set[DiskKey], list[Orphan]]:
        devices: dict[str, LoopDevice | NbdDevice] = {**self._devices.survey(), **self._nbd.survey()}
        recorded = {*self._blktap.survey(), *(claim.key for claim in self._block.survey()), *self.paths.all()}
        told = {device.tag.key for device in devices.values() if device.tag and device.tag.key}
        names = {disk_id(key): key for key in known | recorded | told}
        orphans = [
            Orphan(device.tag.label if device.tag else disk, device.path)
            for disk, device in devices.items()
            if disk not in names
        ]
        return recorded | {names[disk] for disk in devices.keys() & names.keys()}, orphans

    async def observe(self, key: DiskKey, source_path: str | None) -> Actual:
        """What disk `key` really is, and what `source_path` refers to now; changes of either are told from now on."""
        if hung := await self._hung(key):
            return Actual(None, hung)
        return await asyncio.to_thread(self._observe, key, source_path)

    async def look(self, key: DiskKey, desired: DiskSpec | None, *, begin: Callable[[Step], None]) -> Look:
        """Observe disk `key` and say what is to be done next.

        An image file that goes onto a loop device is put there in the same visit to a worker thread: each visit costs
        more than the device does.

        Args:
            key: The disk.
            desired: What should be; None if the disk should not be there.
            begin: Called in the thread before a step is taken.

        Raises:
            DiskError: The step failed; what was there before is there still.
        """
        if hung := await self._hung(key):
            actual = Actual(None, hung)
            return Look(actual, plan(desired, actual))
        return await asyncio.to_thread(self._look_and_attach, key, desired, begin)

    def _look_and_attach(self, key: DiskKey, desired: DiskSpec | None, begin: Callable[[Step], None]) -> Look:
        with ExitStack() as stack:
            actual, pin = self._actual(key, desired.source if desired else None, stack)
            step = plan(desired, actual)
            if not isinstance(step, Attach) or step.spec.backend is not Backend.LOOP or pin is None:
                return Look(actual, step)
            self._backend(step.spec)
            alone = stack.enter_context(self._turns.at_once(pin.source.identity))
            if not alone or pin.source.kind is not SourceKind.FILE:  # of a device it takes time to see who has it
                return Look(actual, step)
            begin(step)
            attached, warning = self._loop.attach_here(step.spec, pin)
            self._sightings.note(key, attached)
            actual = replace(actual, source=self._with_length_followed(key, pin), attached=attached)
        return Look(actual, plan(desired, actual), done=step, warning=warning)

    async def attached(self, key: DiskKey) -> Attached | None:
        """What of disk `key` is there."""
        return await self._hung(key) or await asyncio.to_thread(self._attached, key)

    async def _hung(self, key: DiskKey) -> Attached | None:
        """What was seen last of a disk whose server is under suspicion and does not answer."""
        seen = self._sightings.of(key)
        if key not in self._sightings.suspects or seen is None or seen.backend is not Backend.BLKTAP:
            return None
        if await self._blktap.hangs(key):
            return replace(seen, server_answers=False)
        self._sightings.suspects.discard(key)
        return None

    async def tell_of_release(self, key: DiskKey, device_path: str, holders: DeviceHolders | None) -> None:
        """Report a change once somebody lets go of the device, or has by now. It may come too often, or not at all."""
        if (seen := self._sightings.of(key)) and seen.node is None:
            self._queue.stand(key, device_path)
            return
        self.watch.tell_of_release(key, device_path)
        if holders and holders.found and not (await asyncio.to_thread(DeviceHolders.of, device_path)).found:
            self._on_change(key, Trigger.KERNEL)

    def tell_of_writer(self, key: DiskKey) -> None:
        """Report a change once somebody has written the disk's source."""
        self.watch.tell_of_writer(key)

    def _observe(self, key: DiskKey, source_path: str | None) -> Actual:
        with ExitStack() as stack:
            return self._actual(key, source_path, stack)[0]

    def _actual(self, key: DiskKey, source_path: str | None, stack: ExitStack) -> tuple[Actual, Pin | None]:
        """What is there, and its source if it can be had, which `stack` lets go."""
        attached = self._attached(key)
        self.watch.follow(key, source_path, attached)
        found = judged(lambda: stack.enter_context(pinned(source_path, self._pools))) if source_path else None
        stray = None if attached and attached.has_its_device else self.paths.read(key)
        actual = Actual(found.source if isinstance(found, Pin) else found, attached, stray, self._grows.asked(key))
        kernel_writes = Writer.of(attached) is Writer.KERNEL
        if not isinstance(found, Pin):
            if kernel_writes:
                self.watch.follow_length(key, None)
            return actual, None
        if kernel_writes:
            actual = replace(actual, source=self._with_length_followed(key, found))
        return actual, found

    def _with_length_followed(self, key: DiskKey, pin: Pin) -> Source | Fault:
        """The source of a disk whose length is its file's; that is told of from now on, and so looked at once more."""
        if pin.source.kind is SourceKind.FILE and self.watch.follow_length(key, pin.fd):
            return judged(lambda: file_now(pin))
        return pin.source

    def _attached(self, key: DiskKey) -> Attached | None:
        self._sightings.expect(key)
        self.watch.forget_release(key)
        attached = self._blktap.observe(key) or self._loop.observe(key) or self._block.observe(key)
        self._sightings.note(key, attached)
        return attached

    async def apply(self, step: Step, key: DiskKey) -> str | None:
        """Carry out a step.

        Returns:
            A warning for people, or None.

        Raises:
            DiskError: What was there before is there still.
        """
        match step:
            case Nothing() | Keep() | Refuse():
                return None
            case Unlink():
                await asyncio.to_thread(self.paths.remove, key)
            case Attach(spec):
                async with self._pinned(spec) as pin:
                    return await self._backend(spec).attach(spec, pin)
            case Adopt() | Grow() | Tune() | Quiesce() | Resume():
                await self._change(step, key)
            case Revive(spec, _):
                async with self._pinned(spec) as pin:
                    await self._blktap.revive(spec, pin)
            case Enlarge(spec, attached, size_bytes):
                await self._enlarge(spec, attached, size_bytes)
            case Replace(spec, attached):
                return await self._replace(spec, attached)
            case Detach(attached):
                await self._by_backend[attached.backend].detach(key)
        return None

    async def _change(self, step: Adopt | Grow | Tune | Quiesce | Resume, key: DiskKey) -> None:
        """Carry out a step under the disk's user."""
        match step:
            case Adopt(spec, attached):
                async with self._turns.in_turn(_turn(attached.identity)):  # it may claim its device anew
                    await self._by_backend[attached.backend].adopt(spec)
            case Grow(attached, size_bytes):
                await self._by_backend[attached.backend].grow(key, size_bytes)
            case Tune(spec, attached):
                await self._by_backend[attached.backend].tune(spec)
            case Quiesce():
                await self._blktap.quiesce(key)
            case Resume():
                await self._blktap.resume(key)

    async def _enlarge(self, spec: DiskSpec, attached: Attached, size_bytes: int) -> None:
        """Whoever asked is told what came of it; the disk is as good as before, so it is no failure of its own."""
        error = None
        try:
            refuse_to_grow(spec, attached, size_bytes)
            async with self._pinned(spec) as pin:
                if is_raw(spec):
                    await asyncio.to_thread(extend, pin, spec, attached, size_bytes)
                else:
                    await self._blktap.enlarge(spec, pin, size_bytes)
        except DiskError as refused:
            error = refused.message
            log.warning("not made larger", disk=str(spec.key), size_bytes=size_bytes, why=error)
        await asyncio.to_thread(self._grows.answer, spec.key, error)

    async def _replace(self, spec: DiskSpec, attached: Attached) -> str | None:
        replaced = self._by_backend[attached.backend]
        if not attached.serves:
            # Nobody has anything of it, and what a block disk's link names is somebody else's by now, so it goes even
            # if what shall take its place can't be had.
            await replaced.detach(spec.key)
        async with self._pinned(spec) as pin:
            return await self._backend(spec).attach(spec, pin, replacing=replaced)

    @asynccontextmanager
    async def _pinned(self, spec: DiskSpec) -> AsyncIterator[Pin]:
        """The spec's source, resolved this one time, and other disks kept off it meanwhile.

        A block device that is taken is refused.
        """
        if spec.source is None:
            raise AssertionError(f"{spec.key} has no source to open")
        with ExitStack() as stack:
            pin = await asyncio.to_thread(self._pin, spec.source, spec.chain, stack)
            async with self._turns.in_turn(_turn(pin.source.identity)):
                if pin.source.kind is SourceKind.BLOCK:
                    await asyncio.to_thread(self._block.refuse_taken, pin, spec)
                yield pin

    def _pin(self, path: str, chain: Sequence[Layer], stack: ExitStack) -> Pin:
        top, *below = [stack.enter_context(pinned(each, self._pools)) for each in (path, *(one.path for one in chain))]
        return replace(top, below=tuple(below))

    async def close(self) -> None:
        """Stop watching. Every disk stays up."""
        self._queue.close()
        await self._blktap.close()
        self._abilities.taps.starter.close()

    def _backend(self, spec: DiskSpec) -> Reconciler:
        if spec.backend is None or spec.format is None:
            raise AssertionError(f"{spec.key} has no backend")
        if why := self._abilities.missing.get(spec.backend):
            raise DiskError(
                Reason.BACKEND_UNAVAILABLE, f"{spec.key} wants {spec.backend}, and this host lacks it: {why}"
            )
        if spec.format not in self._abilities.formats:
            message = (
                f"{spec.key} is {spec.format}, which no server here may open (blktap.formats); convert it with qemu-img"
            )
            raise DiskError(Reason.FORMAT_UNSUPPORTED, message)
        return self._by_backend[spec.backend]


def _turn(source: FileId) -> FileId:
    """For what a disk waits its turn: a partition and its disk are one, and nothing else keeps two from having both."""
    return source if source.inode else FileId(block_layer.whole(source.device), 0)
