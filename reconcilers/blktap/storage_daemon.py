"""qemu-storage-daemon as a tap: how it is started, asked and stopped.

The image reaches it as an inherited descriptor that already carries the image's locks, so these live exactly as long
as the server does. Every block driver is named; nothing is ever probed. See qemu-storage-daemon(1) and the QEMU QMP
reference.
"""

import asyncio
import fcntl
import os
import re
import shutil
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from qemu.qmp import QMPError

from reconcilers.blktap import aio_slots
from reconcilers.blktap.grant import grant
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.blktap.nodes import (
    DRIVERS,
    EXPORT,
    LIMITS_PATH,
    export_arguments,
    node_arguments,
    strangers,
    throttle,
    top,
)
from reconcilers.blktap.qmp import execute, exported_size, session
from reconcilers.blktap.stillness import stop_process, sync_image
from reconcilers.blktap.tap import TapFolder, TapRecord
from reconcilers.errors import DiskError
from reconcilers.jail.launcher import Starter
from reconcilers.jail.order import Order
from reconcilers.jail.profile import Jail, order
from reconcilers.jail.warden import FIRST_DESCRIPTOR
from reconcilers.process import process_end
from reconcilers.reason import Reason
from reconcilers.source import OpenSource
from reconcilers.spec import DiskSpec, Format
from reconcilers.tuning import Aio, Cache, Limits, Tuning

PROGRAM = "qemu-storage-daemon"

_PROBE_SECONDS = 10.0

_CONTROL, _EVENTS, _LOCK, _FIRST_IMAGE = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + 4)
"""The numbers that the descriptors have in the server. Behind the last image comes the listener for NBD, if any."""


async def version() -> str | None:
    """The program's name and version as `qemu-storage-daemon 7.2.22`; None if this host lacks it."""
    if shutil.which(PROGRAM) is None:
        return None
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "--version", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    words = output.decode("utf-8", "replace").split()
    return f"{PROGRAM} {words[2]}" if len(words) > 2 else PROGRAM  # noqa: PLR2004


async def lacking(starter: Starter, device: DeviceKind) -> tuple[str, ...]:
    """What of the jail of a server behind such a device this host can't give, each piece with the reason.

    Found out by going into one.
    """
    try:
        mount_point = Path("/export") if device is DeviceKind.FUSE_LOOP else None
        wanted = order([PROGRAM, "--version"], mount_point=mount_point, jail=Jail.BEST_EFFORT)
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return (await starter.launch("probe", wanted, nowhere, ())).lacking
        finally:
            os.close(nowhere)
    except (OSError, TimeoutError) as error:
        return (f"all of it: {error or 'no answer'}",)


def punches_exactly(server: str) -> bool:
    """Whether a hole punched into the export reads as zeroes, whatever the format.

    Before version 8.0 it was passed on as a discard, which formats may ignore (measured with 7.2.22: all do but raw,
    and qcow2 for parts of clusters); the kernel punches holes where a guest wants zeroes.
    """
    return _major(server) >= 8  # noqa: PLR2004


def flushes_every_write(server: str) -> bool:
    """Whether the export's `writethrough` has every write on the disk before it counts as done.

    7.2.22 does; with 10.0.13 pages of the image are still dirty afterwards (measured with cachestat(2)). What is
    between the two was not measured, and counts as not doing it. Flushes that a guest asks for are done by all.
    """
    return 0 < _major(server) < 8  # noqa: PLR2004


def _major(server: str) -> int:
    number = re.search(r" (\d+)\.", server)
    return int(number[1]) if number else 0


class StorageDaemon:
    """See `TapServer`; `version` is what the function `version` says."""

    kind = ServerKind.STORAGE_DAEMON
    formats = frozenset(DRIVERS)

    def __init__(self, version: str, starter: Starter, jail: Jail) -> None:
        self.version = version
        self._starter = starter
        self._jail = jail

    def lacks(self, spec: DiskSpec) -> str | None:
        """See `TapServer`."""
        return None if spec.format in self.formats else f"the format {spec.format}"

    def grant(self, spec: DiskSpec, image: OpenSource, device: DeviceKind) -> Tuning:
        """See `TapServer`."""
        exact = device is not DeviceKind.FUSE_LOOP or punches_exactly(self.version)
        through = flushes_every_write(self.version)
        granted = grant(spec, image, exact=exact, through=through)
        if device is DeviceKind.NBD_SOCKET and spec.format is Format.QCOW2 and not spec.read_only:
            # A client that goes on with the next server is not told of what was lost with this one, so nothing may be.
            cache = Cache.DIRECTSYNC if granted.cache.direct else Cache.WRITETHROUGH
            return replace(granted, cache=cache)
        return granted

    async def spawn(self, tap: TapFolder, image_fds: Sequence[int], *, within: float) -> None:
        """Start the server of `tap` over its locked images, and wait until its export is there.

        Args:
            tap: Prepared, with its record.
            image_fds: The image's, and those of the images below it. The server inherits them; close them afterwards,
                so that the locks' life is the server's. None for a relay.
            within: Seconds until the attempt counts as failed; the server is then ended.

        Raises:
            DiskError: ServerFailed with the server's last log lines, TimedOut, AioSlotsTaken, or BackingUndeclared.
                Nothing runs then.
        """
        record = _record(tap)
        native = record.tuning.io is Aio.NATIVE and bool(image_fds)
        with aio_slots.taking(aio_slots.OF_NATIVE_IO if native else 0, "a server with io='native'"):
            await self._start(tap, record, image_fds, within=within)

    async def _start(self, tap: TapFolder, record: TapRecord, image_fds: Sequence[int], *, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                await self._launch(tap, record, image_fds)
            await self.ready(tap, within=within)
        except TimeoutError as error:
            await _end(tap)
            raise DiskError(Reason.TIMED_OUT, f"the server was not started within {within:g} s") from error
        except OSError as error:  # no program any more, no process to be had, no jail, or no room to note it (ENOSPC)
            await _end(tap)
            raise DiskError(Reason.SERVER_FAILED, f"{PROGRAM} can't be started: {error}") from error
        except BaseException:
            await _end(tap)
            raise

    async def _launch(self, tap: TapFolder, record: TapRecord, image_fds: Sequence[int]) -> None:
        with ExitStack() as stack:
            # Listening before the server starts means that we can connect at once and need not wait for a file.
            listeners = [stack.enter_context(_listener(path)) for path in (tap.qmp, tap.events)]
            lock_fd = os.open(tap.lock, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, lock_fd)
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log = stack.enter_context(tap.log.open("a+b"))
            inherited = [*(listener.fileno() for listener in listeners), lock_fd, *image_fds]
            if socket_path := tap.listens_at(record.device_kind):
                inherited.append(stack.enter_context(_listener(socket_path)).fileno())
            wanted = await asyncio.to_thread(
                self._order, tap, record, len(image_fds), FIRST_DESCRIPTOR + len(inherited)
            )
            launched = await self._starter.launch(tap.name, wanted, log.fileno(), inherited)
            await asyncio.to_thread(tap.note_process, launched.pid)

    def _order(self, tap: TapFolder, record: TapRecord, images: int, behind: int) -> Order:
        mount_point = tap.export_inside
        watch = _monitor("watch", f"fd={behind}") if self._starter.watches else []
        return order(
            [*_command(record, range(_FIRST_IMAGE, _FIRST_IMAGE + images), mount_point), *watch],
            mount_point=mount_point if record.device_kind is DeviceKind.FUSE_LOOP else None,
            io_uring=record.tuning.io is Aio.IO_URING,
            connects_to=record.relays,
            jail=self._jail,
            fields={"GUEST": record.guest, "TARGET": record.target},
            held=tap.held_file,
            record=tap.record_file,
        )

    async def ready(self, tap: TapFolder, *, within: float) -> None:
        """Wait until the server's export is there, and see that it has nothing open that it was not given.

        Raises:
            DiskError: ServerFailed with the server's last log lines, TimedOut, or BackingUndeclared.
        """
        try:
            async with asyncio.timeout(within):
                # The greeting comes from the monitor's own thread and proves nothing; commands are answered by the main
                # loop, which runs only after every option, the export among them, was carried out.
                async with session(tap) as client:
                    exports = await client.ask("query-block-exports")
                    nodes = await client.ask("query-named-block-nodes", {"flat": True})
        except TimeoutError as error:
            message = f"the server was not ready after {within:g} s; {tap.last_log_lines()}"
            raise DiskError(Reason.TIMED_OUT, message) from error
        except (QMPError, OSError, EOFError) as error:
            message = f"{PROGRAM} did not start: {tap.last_log_lines() or error}"
            raise DiskError(Reason.SERVER_FAILED, message) from error
        if not any(each["id"] == EXPORT for each in exports):
            message = f"{PROGRAM} runs without its export; {tap.last_log_lines()}"
            raise DiskError(Reason.SERVER_FAILED, message)
        if unexpected := ", ".join(strangers(_record(tap), nodes)):
            message = f"{PROGRAM} has other things open than it was given: {unexpected}; nothing is attached to it"
            raise DiskError(Reason.BACKING_UNDECLARED, message)

    async def answers(self, tap: TapFolder, *, within: float) -> bool:
        """Whether the server's main loop, which all requests go through, answers within so many seconds."""
        try:
            async with asyncio.timeout(within):
                await execute(tap, "query-block-exports")
        except (QMPError, OSError, EOFError, TimeoutError):
            return False
        return True

    async def set_limits(self, tap: TapFolder, limits: Limits, *, within: float) -> None:
        """Give a server that takes limits others, or none, online.

        Raises:
            DiskError: ServerFailed, or TimedOut.
        """
        change = {"path": LIMITS_PATH, "property": "limits", "value": throttle(limits)}
        try:
            async with asyncio.timeout(within):
                await execute(tap, "qom-set", change)
        except TimeoutError as error:
            raise DiskError(Reason.TIMED_OUT, f"the server took no new limits within {within:g} s") from error
        except (QMPError, OSError, EOFError) as error:
            raise DiskError(Reason.SERVER_FAILED, f"the server took no new limits: {error}") from error

    async def resize(self, tap: TapFolder, size_bytes: int, *, within: float) -> None:
        """See `TapServer`. The topmost node is resized, and with it all below: filters remember their size.

        Raises:
            DiskError: ServerFailed with the server's words, as not every format's driver can; or TimedOut.
        """
        try:
            async with asyncio.timeout(within):
                # It would make a qcow2 image smaller as well.
                if await exported_size(tap) < size_bytes:
                    await execute(tap, "block_resize", {"node-name": top(_record(tap)), "size": size_bytes})
        except TimeoutError as error:
            raise DiskError(Reason.TIMED_OUT, f"the server did not resize its image within {within:g} s") from error
        except (QMPError, OSError, EOFError) as error:
            raise DiskError(Reason.SERVER_FAILED, f"the server did not resize its image: {error}") from error

    async def hold(self, tap: TapFolder, *, within: float) -> None:
        """See `TapServer`. QMP has nothing that lasts: a transaction drains, and lets go at its end.

        Limits do not hold anything either, and a throttled FUSE request keeps the main loop from taking an order.
        """
        pid = await asyncio.to_thread(tap.process_id)
        await asyncio.to_thread(stop_process, pid, within=within)
        await asyncio.to_thread(sync_image, pid, _record(tap).identity)

    async def release(self, tap: TapFolder, *, within: float) -> None:
        """See `TapServer`."""
        del within
        os.kill(await asyncio.to_thread(tap.process_id), signal.SIGCONT)

    async def stop(self, tap: TapFolder, *, within: float) -> None:
        """Ask the server to flush and end, and wait until it has. The device over its export is gone by now.

        Raises:
            DiskError: TimedOut if it does not end; it is not killed, since what it has not flushed would be lost.
        """
        if not tap.alive():
            return
        pid = await asyncio.to_thread(tap.process_id)
        try:
            async with asyncio.timeout(within):
                with suppress(QMPError, OSError, EOFError):
                    await execute(tap, "quit")
                await process_end(pid)
        except TimeoutError as error:
            raise DiskError(
                Reason.TIMED_OUT,
                f"the server (pid {pid}) did not end within {within:g} s; it may be stopped or its storage may hang",
            ) from error


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


async def _end(tap: TapFolder) -> None:
    """End a server at once. Nothing is attached to it yet, so nothing can be lost."""
    if not tap.locked():
        return
    with suppress(DiskError, ProcessLookupError):  # it has just ended
        pid = await asyncio.to_thread(tap.process_id)
        os.kill(pid, signal.SIGKILL)
        await process_end(pid)


def _command(record: TapRecord, images: Sequence[int], mount_point: Path) -> list[str]:
    return [
        PROGRAM,
        *_monitor("control", f"fd={_CONTROL},server=on,wait=off"),
        *_monitor("events", f"fd={_EVENTS},server=on,wait=off"),
        *node_arguments(record, images),
        *export_arguments(record, mount_point, _FIRST_IMAGE + len(images)),
    ]


def _monitor(name: str, socket_options: str) -> list[str]:
    return ["--chardev", f"socket,id={name},{socket_options}", "--monitor", f"chardev={name}"]


def _record(tap: TapFolder) -> TapRecord:
    record = tap.record()
    if record is None:
        raise DiskError(Reason.INTERNAL_ERROR, f"the tap folder {tap.path} has no record")
    return record
