"""Talking to a storage daemon."""

import asyncio
import socket
from pathlib import Path

import pytest

from reconcilers.blktap.storage_daemon import PROGRAM, StorageDaemon
from reconcilers.blktap.tap import TapFolder
from reconcilers.jail.launcher import Launcher
from reconcilers.jail.profile import Jail

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


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on what comes, up to its end."""
    while part := await reader.read(4096):
        writer.write(part)
        await writer.drain()
    writer.close()
