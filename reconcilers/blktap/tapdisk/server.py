"""tapdisk as a tap's server.

It gets the image and the tap's lock as inherited descriptors, as the storage daemon does: opened as /proc/self/fd/N,
the image is the one that was checked and locked, and its name can be neither too long for `type:path` (254 bytes) nor
mean anything to a parser. What it exports is an NBD socket. Where a FUSE mount is wanted, a storage daemon is put in
front of it, the relay, with a folder of its own in the tap's.

It passes on no flush and no discard: its NBD server offers neither.
"""

import asyncio
import errno
import fcntl
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from reconcilers.actual import SECTOR
from reconcilers.blktap import aio_slots
from reconcilers.blktap.kinds import DeviceKind
from reconcilers.blktap.storage_daemon import StorageDaemon
from reconcilers.blktap.tap import TapFolder, TapRecord
from reconcilers.blktap.tapdisk import tap_ctl
from reconcilers.blktap.tapdisk.leftovers import clear_away
from reconcilers.blktap.tapdisk.listing import Entry, State
from reconcilers.blktap.tapdisk.tap_ctl import TapCtlError
from reconcilers.errors import DiskError
from reconcilers.holders import holders_of_path
from reconcilers.jail.launcher import Starter
from reconcilers.jail.profile import daemon_order
from reconcilers.jail.warden import FIRST_DESCRIPTOR
from reconcilers.process import process_end
from reconcilers.reason import Reason
from reconcilers.source import OpenSource
from reconcilers.spec import DiskSpec, Format
from reconcilers.tuning import Aio, Cache, DetectZeroes, Limits, Tuning

KINDS = {Format.AIO: "aio", Format.VHD: "vhd", Format.QCOW2: "qcow2"}
"""tapdisk's names of the formats that one build or another opens."""

_IMAGE = f"/proc/self/fd/{FIRST_DESCRIPTOR}"

_LOGS = Path("/var/log/blktap")
"""tapdisk ends if it can't write there. In a unit it could not make the folder."""

_OWN_LOG = f"tapdisk's own log is in {_LOGS} or in syslog"

GRANTED = Tuning(cache=Cache.UNSAFE, io=Aio.NATIVE, discard=False)
"""The same for every image. Its I/O is direct, and yet the cache is unsafe: no flush of a guest's reaches the image."""


class Tapdisk:
    """See `TapServer`."""

    def __init__(self, formats: frozenset[Format], relay: StorageDaemon | None, starter: Starter) -> None:
        """Args: what this build was seen to open; what makes a FUSE export of what it serves; and who starts it."""
        self.version = "tapdisk"
        self.formats = formats
        self._relay = relay
        self._starter = starter

    def lacks(self, spec: DiskSpec) -> str | None:
        """See `TapServer`."""
        wanted = {
            f"the format {spec.format}": spec.format not in self.formats,
            "a slice of the image": bool(spec.slice_offset) or spec.slice_size is not None,
            "a backing chain": bool(spec.chain),
            "iotune": bool(spec.tuning.limits),
            "detect_zeroes": spec.tuning.detect_zeroes is not DetectZeroes.OFF,
        }
        return next((what for what, lacking in wanted.items() if lacking), None)

    def grant(self, spec: DiskSpec, image: OpenSource, device: DeviceKind) -> Tuning:
        """See `TapServer`."""
        del spec, device
        if (size := image.source.size_bytes) % SECTOR:
            message = (
                f"image {image.path} has {size} bytes, no multiple of {SECTOR}, and tapdisk would cut off the rest; "
                f"round it up with truncate -s %{SECTOR}"
            )
            raise DiskError(Reason.IMAGE_UNALIGNED, message)
        return GRANTED

    async def spawn(self, tap: TapFolder, image_fds: Sequence[int], *, within: float) -> None:
        """See `TapServer`."""
        record = tap.record()
        if record is None:
            raise AssertionError(f"the tap folder {tap.path} has no record")
        with aio_slots.taking(aio_slots.OF_A_TAPDISK, "a tapdisk"):
            try:
                await self._serve(tap, record, image_fds[0], within=within)
                if record.device_kind is DeviceKind.FUSE_LOOP:
                    await self._start_relay(tap, record, within=within)
            except BaseException as error:
                await asyncio.shield(self._give_up(tap, within=within))
                if isinstance(error, TapCtlError):
                    raise _disk_error(error) from error
                raise

    async def ready(self, tap: TapFolder, *, within: float) -> None:
        """See `TapServer`."""
        try:
            entry = await _entry(tap, await asyncio.to_thread(tap.process_id), within=within)
        except TapCtlError as error:
            raise _disk_error(error) from error
        if entry is None or entry.state:
            state = entry.state if entry else None
            raise DiskError(Reason.SERVER_FAILED, f"tapdisk does not serve the image now (state {state!r})")
        record = tap.record()
        if record and record.device_kind is DeviceKind.FUSE_LOOP:
            await self._relay_server().ready(tap.relay, within=within)

    async def answers(self, tap: TapFolder, *, within: float) -> bool:
        """See `TapServer`."""
        try:
            await self.ready(tap, within=within)
        except DiskError:
            return False
        return True

    async def set_limits(self, tap: TapFolder, limits: Limits, *, within: float) -> None:
        """See `TapServer`. Never planned: a disk with limits is not given to tapdisk."""
        del limits, within
        raise AssertionError(f"{tap.path} has no limits")

    async def resize(self, tap: TapFolder, size_bytes: int, *, within: float) -> None:
        """See `TapServer`. Never asked for (`growth.py`)."""
        del size_bytes, within
        raise AssertionError(f"{tap.path} can't be resized")

    async def hold(self, tap: TapFolder, *, within: float) -> None:
        """See `TapServer`."""
        pid = await asyncio.to_thread(tap.process_id)
        minor = tap_ctl.minor_of(await asyncio.to_thread(tap.marker.readlink))
        try:
            await tap_ctl.pause(pid, minor, within=within)
        except TapCtlError as error:
            raise _disk_error(error) from error

    async def release(self, tap: TapFolder, *, within: float) -> None:
        """See `TapServer`."""
        pid = await asyncio.to_thread(tap.process_id)
        try:
            entry = await _entry(tap, pid, within=within)
            if entry and entry.minor is not None and (entry.state or State.RUNS) & State.PAUSED:
                await tap_ctl.unpause(pid, entry.minor, within=within)
        except TapCtlError as error:
            raise _disk_error(error) from error

    async def stop(self, tap: TapFolder, *, within: float) -> None:
        """See `TapServer`. The relay first, since what it has of the guest's is to go through tapdisk."""
        if tap.relay.record():
            await self._relay_server().stop(tap.relay, within=within)
        if tap.locked():
            try:
                await _end(tap, within=within)
            except TapCtlError as error:
                raise _disk_error(error) from error
        await clear_away(tap, within=within)

    async def _serve(self, tap: TapFolder, record: TapRecord, image_fd: int, *, within: float) -> None:
        """Start a tapdisk and let it open the image. What is known of it is written down step by step.

        Raises:
            TapCtlError, DiskError: A tapdisk may run all the same, and then holds the tap's lock.
        """
        marker = await tap_ctl.allocate(within=within)
        await asyncio.to_thread(tap.marker.symlink_to, marker)
        minor = tap_ctl.minor_of(marker)
        pid = await self._launch(tap, record, image_fd, within=within)
        await asyncio.to_thread(tap.note_process, pid)
        await tap_ctl.attach(pid, minor, within=within)
        kind = KINDS[record.format]
        await tap_ctl.open_image(pid, minor, kind, _IMAGE, read_only=record.read_only, within=within)
        # Not nbdserver*, which takes descriptors and lets a client of NBD wait for ever.
        await asyncio.to_thread(tap.nbd.symlink_to, marker.parent.parent / f"nbd{pid}.{minor}")

    async def _launch(self, tap: TapFolder, record: TapRecord, image_fd: int, *, within: float) -> int:
        """A tapdisk that serves nothing yet, with the image and the tap's lock; its process id."""
        fields = {"GUEST": record.guest, "TARGET": record.target}
        try:
            if self._starter.watches:
                await asyncio.to_thread(_LOGS.mkdir, exist_ok=True)
            wanted = daemon_order(tap_ctl.SPAWN, asked_by=tap_ctl.LIST_ONE, fields=fields)
            with _lock(tap) as lock_fd, tap.log.open("a+b") as log:
                async with asyncio.timeout(within):
                    return (await self._starter.launch(tap.name, wanted, log.fileno(), (image_fd, lock_fd))).pid
        except TimeoutError as error:
            raise TapCtlError("spawn", errno.ETIMEDOUT, f"no answer within {within:g} s") from error
        except OSError as error:
            raise DiskError(Reason.SERVER_FAILED, f"tap-ctl spawn: {error}; {_OWN_LOG}") from error

    async def _start_relay(self, tap: TapFolder, record: TapRecord, *, within: float) -> None:
        server = self._relay_server()
        relayed = {"server": server.version, "format": Format.AIO, "raw_size": None, "relays": str(tap.nbd)}
        tap.relay.prepare(record.model_copy(update=relayed))
        await server.spawn(tap.relay, (), within=within)

    def _relay_server(self) -> StorageDaemon:
        if self._relay is None:
            message = "tapdisk needs qemu-storage-daemon for a FUSE export; install it, or load the module nbd"
            raise DiskError(Reason.BACKEND_UNAVAILABLE, message)
        return self._relay

    async def _give_up(self, tap: TapFolder, *, within: float) -> None:
        """End what was begun. Nothing has written through it yet, so it may be killed."""
        with suppress(DiskError):
            if tap.relay.record():
                await self._relay_server().stop(tap.relay, within=within)
        for holder in await asyncio.to_thread(holders_of_path, str(tap.lock)):
            await asyncio.to_thread(tap.pid_file.write_text, str(holder.pid))  # tap-ctl may have kept it to itself
            with suppress(ProcessLookupError):
                os.kill(holder.pid, signal.SIGKILL)
            await process_end(holder.pid)
        await clear_away(tap, within=within)


@contextmanager
def _lock(tap: TapFolder) -> Iterator[int]:
    fd = os.open(tap.lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    finally:
        os.close(fd)


async def _entry(tap: TapFolder, pid: int, *, within: float) -> Entry | None:
    """What the tap's own tapdisk says of its disk; None if it serves none."""
    try:
        minor = tap_ctl.minor_of(await asyncio.to_thread(tap.marker.readlink))
        entries = await tap_ctl.entries_of(pid, within=within)
    except FileNotFoundError:
        return None
    except TapCtlError as error:
        if error.errno in {errno.ENOENT, errno.ECONNREFUSED}:  # it has no control socket yet
            return None
        raise
    return next((entry for entry in entries if entry.minor == minor), None)


async def _end(tap: TapFolder, *, within: float) -> None:
    """Close, detach and wait for the end; where an earlier attempt was cut short, what is left of that."""
    pid = await asyncio.to_thread(tap.process_id)
    await asyncio.to_thread(tap.pid_file.write_text, str(pid))  # an agent that was killed may not have come to that
    entry = await _entry(tap, pid, within=within)
    if entry is None or entry.minor is None:
        os.kill(pid, signal.SIGKILL)  # it serves nothing, so nothing is lost, and it would not end by itself
    else:
        if not (entry.state and entry.state & State.CLOSED) or entry.state & State.PAUSED:
            await tap_ctl.close(pid, entry.minor, within=within)
        await tap_ctl.detach(pid, entry.minor, within=within)
    try:
        async with asyncio.timeout(within):
            await process_end(pid)
    except TimeoutError as error:
        raise TapCtlError("detach", errno.ETIMEDOUT, f"tapdisk {pid} did not end within {within:g} s") from error


def _disk_error(error: TapCtlError) -> DiskError:
    if error.errno == errno.ETIMEDOUT:
        return DiskError(Reason.TIMED_OUT, f"{error}; look whether the tapdisk is stopped or its storage hangs")
    return DiskError(Reason.SERVER_FAILED, f"{error}; {_OWN_LOG}")
