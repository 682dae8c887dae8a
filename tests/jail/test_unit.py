"""The program of a tap's unit, with a test in systemd's place: what it asks of the agent, and what it tells."""

import asyncio
import errno
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from reconcilers.blktap.storage_daemon import PROGRAM
from reconcilers.blktap.tap import TapFolder, TapRecord
from reconcilers.jail import warden
from reconcilers.jail.launcher import Launched
from reconcilers.jail.order import Order
from reconcilers.jail.profile import daemon_order, order
from reconcilers.jail.units import UnitStarter
from reconcilers.spec import Format
from reconcilers.tuning import UNTUNED, Limits
from tests.faults.harm import no_free_descriptor
from tests.jail.systemds_place import APART, SystemdsPlace
from tests.tapdisk.host import install_double

pytestmark = pytest.mark.usefixtures("host_parts")

WATCHDOG_USEC = 300_000
SECONDS = 60


class Unit:
    """A running one."""

    def __init__(self, launched: Launched, process: asyncio.subprocess.Process, told: socket.socket) -> None:
        self.server = launched.pid
        self.lacking = launched.lacking
        self._process = process
        self._told = told

    @property
    def minder(self) -> int:
        """What looks after the server."""
        return self._process.pid

    async def ended(self) -> int:
        """How it ended, once it has."""
        return await _end(self._process)

    async def says(self) -> bytes:
        """The next thing that systemd is told."""
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._told, 4096), SECONDS)

    async def is_silent(self) -> bool:
        """Whether nothing comes in the time of several signs of life, once what was under way is there."""
        await asyncio.sleep(WATCHDOG_USEC / 1e6)
        while True:
            try:
                self._told.recv(4096)
            except BlockingIOError:
                break
        await asyncio.sleep(WATCHDOG_USEC / 1e6)
        try:
            self._told.recv(4096)
        except BlockingIOError:
            return True
        return False


async def _end(process: asyncio.subprocess.Process) -> int:
    return await asyncio.wait_for(process.wait(), SECONDS)


@asynccontextmanager
async def unit(wanted: Order, around: Sequence[str] = APART) -> AsyncIterator[Unit]:
    """A unit with a server in it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as log,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as told,
    ):
        notify = Path(folder, "notify")
        told.bind(str(notify))
        surroundings = {"NOTIFY_SOCKET": str(notify), "WATCHDOG_USEC": str(WATCHDOG_USEC)}
        systemd = SystemdsPlace(Path(folder, "orders"), around=around, surroundings=surroundings)
        try:
            launched = await UnitStarter(Path(folder), systemd).launch("a", wanted, log.fileno(), ())
            try:
                yield Unit(launched, systemd.processes[0], told)
            finally:
                with suppress(ProcessLookupError):
                    os.kill(launched.pid, signal.SIGKILL)
        finally:
            await _end(systemd.processes[0])


def a_server(held: Path | None = None, record: Path | None = None) -> Order:
    command = [PROGRAM, "--chardev", "socket,id=watch,fd=3", "--monitor", "chardev=watch"]
    return order(command, mount_point=None, held=held, record=record)


def a_record(limits: Limits) -> TapRecord:
    tuning = replace(UNTUNED, limits=limits)
    return TapRecord(
        guest="vm",
        target="vda",
        source="/images/a.img",
        device=1,
        inode=2,
        format=Format.AIO,
        read_only=False,
        slice_offset=0,
        slice_size=None,
        raw_size=None,
        server="qemu-storage-daemon",
        asked=tuning,
        tuning=tuning,
    )


def a_daemon(folder: Path) -> Order:
    """A program that starts a server: the double of tap-ctl."""
    program = folder / "tap-ctl"
    install_double(program, folder)
    return daemon_order([str(program), "spawn"], asked_by=[str(program), "list", "-p"], fields={})


async def test_a_server_that_another_program_starts_is_looked_after_as_well(tmp_path: Path) -> None:
    async with unit(a_daemon(tmp_path)) as one:
        assert (tmp_path / f"ctl{one.server}").is_socket()
        assert await one.says() == b"WATCHDOG=1"
        assert await one.says() == b"WATCHDOG=1"
        os.kill(one.server, signal.SIGSTOP)
        assert await one.is_silent()
        os.kill(one.server, signal.SIGCONT)
        assert await one.says() == b"WATCHDOG=1"
        os.kill(one.server, signal.SIGKILL)
        assert await one.ended() == -signal.SIGKILL


async def test_the_unit_of_a_program_that_starts_no_server_ends(tmp_path: Path) -> None:
    (tmp_path / "misbehave").write_text(f"fail spawn {errno.EPROTO}")
    with pytest.raises(OSError, match="Protocol error"):
        async with unit(a_daemon(tmp_path)):
            pass


async def test_signs_of_life_come_as_long_as_the_server_answers() -> None:
    async with unit(a_server()) as one:
        assert one.lacking == ()
        assert await one.says() == b"WATCHDOG=1"
        assert await one.says() == b"WATCHDOG=1"
        os.kill(one.server, signal.SIGSTOP)
        assert await one.is_silent()
        os.kill(one.server, signal.SIGCONT)
        assert await one.says() == b"WATCHDOG=1"


async def test_a_server_that_is_held_on_purpose_counts_as_alive(tmp_path: Path) -> None:
    held = tmp_path / "held"
    async with unit(a_server(held)) as one:
        assert await one.says()
        held.touch()
        os.kill(one.server, signal.SIGSTOP)
        assert not await one.is_silent()
        held.unlink()
        assert await one.is_silent()


async def test_a_server_with_limits_counts_as_alive_while_it_waits(tmp_path: Path) -> None:
    tap = TapFolder(tmp_path)
    tap.write(a_record(limits=(("total_bytes_sec", 1000000),)))
    async with unit(a_server(record=tap.record_file)) as one:
        assert await one.says()
        os.kill(one.server, signal.SIGSTOP)
        assert not await one.is_silent()
        tap.write(a_record(limits=()))
        assert await one.is_silent()


@pytest.mark.parametrize("started_by_another", [False, True])
async def test_a_unit_without_a_free_descriptor_keeps_its_server(tmp_path: Path, started_by_another: bool) -> None:
    async with unit(a_daemon(tmp_path) if started_by_another else a_server()) as one:
        assert await one.says()
        with no_free_descriptor(one.minder):
            assert not await one.is_silent()
            assert not await one.is_silent()
        assert await one.says() == b"WATCHDOG=1"
        os.kill(one.server, signal.SIGSTOP)
        assert await one.is_silent()


async def test_a_server_whose_program_was_moved_is_kept_and_its_end_is_noticed(tmp_path: Path) -> None:
    async with unit(a_daemon(tmp_path)) as one:
        assert await one.says()
        (tmp_path / "tap-ctl").rename(tmp_path / "moved")
        assert not await one.is_silent()
        assert not await one.is_silent()
        os.kill(one.server, signal.SIGKILL)
        assert await one.ended() == -signal.SIGKILL


async def test_a_unit_ends_as_its_server_did() -> None:
    async with unit(a_server()) as one:
        assert await one.says()  # by then it minds signals
        os.kill(one.server, signal.SIGTERM)
        assert await one.ended() == 0
    async with unit(a_server()) as one:
        os.kill(one.server, signal.SIGKILL)
        assert await one.ended() == -signal.SIGKILL


async def test_no_server_starts_where_systemd_has_given_less_than_the_jail_takes_for_granted() -> None:
    with pytest.raises(OSError, match=r"user namespace: .*cross-device"):
        async with unit(a_server(), ("unshare", "--net", "--ipc")):
            pass


async def test_a_unit_that_nobody_has_an_order_for_ends() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(Path(warden.__file__).parent), "become", "/nonexistent",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 1
    assert b"no agent waits there" in said
