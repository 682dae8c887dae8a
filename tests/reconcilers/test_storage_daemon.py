"""Talking to a storage daemon."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from reconcilers.blktap.kinds import DeviceKind
from reconcilers.blktap.storage_daemon import PROGRAM, StorageDaemon
from reconcilers.blktap.tap import TapFolder
from reconcilers.errors import DiskError
from reconcilers.holders import holders_of_path
from reconcilers.image_lock import lock_image
from reconcilers.jail.launcher import Launcher
from reconcilers.jail.profile import Jail
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey, Format
from tests.faults.harm import fill, small_disk
from tests.images.makers import create
from tests.reconcilers.test_nodes import record_of

pytestmark = pytest.mark.usefixtures("host_parts")


async def test_a_server_that_does_not_greet_is_asked_again(tmp_path: Path) -> None:
    """As QEMU does now and then when a client comes right at its start; that moment can't be had on demand."""
    tap, monitor = TapFolder(tmp_path), tmp_path / "monitor"
    passed_over = list[asyncio.StreamWriter]()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not passed_over:
            passed_over.append(writer)
            return
        its_reader, its_writer = await asyncio.open_unix_connection(monitor)
        await asyncio.gather(pass_on(its_reader, writer), pass_on(reader, its_writer))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(monitor))
        listener.listen()
        options = ("--chardev", f"socket,id=control,fd={listener.fileno()},server=on,wait=off")
        server = await asyncio.create_subprocess_exec(
            PROGRAM, *options, "--monitor", "chardev=control", pass_fds=(listener.fileno(),)
        )
    try:
        async with await asyncio.start_unix_server(meet, tap.qmp):
            daemon = StorageDaemon(PROGRAM, Launcher(), Jail.REQUIRE)
            assert await daemon.answers(tap, within=60)
            assert passed_over
    finally:
        server.kill()
        await server.wait()


async def test_a_server_that_can_not_be_noted_is_ended_and_lets_its_image_go(tmp_path: Path) -> None:
    """There is room for its sockets, which are inodes alone, and none for its process id."""
    image = create(tmp_path / "image", Format.QCOW2)
    launcher = Launcher()
    with small_disk(tmp_path / "run", "size=1m", "nr_inodes=200") as runtime:
        tap = TapFolder.of(runtime / "taps", DiskKey("vm1", "vda"))
        tap.prepare(record_of(image, device_kind=DeviceKind.NBD_SOCKET))
        for inode in fill(runtime).glob("[0-9]*"):
            inode.unlink()
        try:
            with image.open("r+b") as file:
                assert lock_image(file.fileno(), read_only=False, shareable=False)
                with pytest.raises(DiskError, match="No space left on device") as failed:
                    await StorageDaemon(PROGRAM, launcher, Jail.REQUIRE).spawn(tap, [file.fileno()], within=60)
            assert failed.value.reason is Reason.SERVER_FAILED
            assert tap.socket.exists()
            assert not tap.pid_file.read_text()
            assert not tap.locked()
            with image.open("r+b") as file:
                assert lock_image(file.fileno(), read_only=False, shareable=False)
        finally:
            for holder in holders_of_path(str(tap.lock)):
                os.kill(holder.pid, signal.SIGKILL)
            launcher.close()


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on what comes, up to its end."""
    while part := await reader.read(4096):
        writer.write(part)
        await writer.drain()
    writer.close()
