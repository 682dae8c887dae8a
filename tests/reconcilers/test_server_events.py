"""What counts as damage of what a server says of its image, asked of real ones."""

import asyncio
import os
import struct
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from qemu.qmp import EventListener
from structlog.testing import capture_logs

from reconcilers.blktap.crashes import Crashes
from reconcilers.blktap.kinds import DeviceKind
from reconcilers.blktap.server_events import ServerEvents
from reconcilers.blktap.storage_daemon import StorageDaemon, version
from reconcilers.blktap.tap import TapFolder, TapLayer, TapRecord
from reconcilers.blktap.watches import TapWatches
from reconcilers.jail.launcher import Launcher
from reconcilers.jail.profile import Jail
from reconcilers.spec import DiskKey, Format
from tests.images.makers import put
from tests.reconcilers.test_nodes import record_of

pytestmark = pytest.mark.usefixtures("host_parts")
KEY = DiskKey("vm1", "vda")
CLUSTER = 65536
SECONDS = 60


def made(path: Path, base: Path | None = None) -> Path:
    on = ["-b", str(base), "-F", "qcow2"] if base else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *on, str(path), "8M"], check=True)
    return path


def damaged(path: Path) -> Path:
    """With data, marked as corrupt, and its second cluster where no cluster can be."""
    write = ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {CLUSTER}", str(made(path))]
    subprocess.run(write, check=True, capture_output=True)
    with path.open("rb") as file:
        file.seek(40)  # l1_table_offset (docs/interop/qcow2.txt)
        (l1_table,) = struct.unpack(">Q", file.read(8))
        file.seek(l1_table)
        l2_table = struct.unpack(">Q", file.read(8))[0] & 0x00FF_FFFF_FFFF_FE00
    put(">Q", l2_table + 8, 1 << 63 | CLUSTER + 512)(path)
    put(">Q", 72, 2)(path)
    return path


@asynccontextmanager
async def served(tap: TapFolder, record: TapRecord, images: Sequence[tuple[Path, int]]) -> AsyncIterator[None]:
    tap.prepare(record)
    launcher = Launcher()
    server = StorageDaemon(await version() or "", launcher, Jail.REQUIRE)
    fds = [os.open(path, flags) for path, flags in images]
    try:
        await server.spawn(tap, fds, within=SECONDS)
        yield
    finally:
        for fd in fds:
            os.close(fd)
        await server.stop(tap, within=SECONDS)
        launcher.close()
        tap.remove()


async def read(tap: TapFolder, at: int) -> str:
    options = f"driver=nbd,server.type=unix,server.path={tap.socket},export=disk"
    words = ["qemu-io", "-r", "--image-opts", options, "-c", f"read -P 7 {at} {CLUSTER}"]
    done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once what was before has been asked for: QEMU tells of a corrupt image once, to whoever listens then."""
    begun, tell = asyncio.Event(), ServerEvents._tell

    async def noted(events: ServerEvents, listener: EventListener) -> None:
        begun.set()
        await tell(events, listener)

    monkeypatch.setattr(ServerEvents, "_tell", noted)
    return begun


@pytest.mark.parametrize("as_base", [False, True])
async def test_what_is_only_read_is_served_however_corrupt(
    tmp_path: Path, listening: asyncio.Event, as_base: bool
) -> None:
    image = damaged(tmp_path / "image")
    tap = TapFolder.of(tmp_path / "taps", KEY)
    record, images = record_of(image, device_kind=DeviceKind.NBD_SOCKET, read_only=True), [(image, os.O_RDONLY)]
    if as_base:
        overlay, facts = made(tmp_path / "overlay", image), image.stat()
        layer = TapLayer(source=str(image), device=facts.st_dev, inode=facts.st_ino, format=Format.QCOW2)
        record = record_of(overlay, device_kind=DeviceKind.NBD_SOCKET, below=(layer,))
        images.insert(0, (overlay, os.O_RDWR))
    told = asyncio.Event()
    watches = TapWatches(Crashes(lambda: 0.0), lambda _key: told.set())
    async with served(tap, record, images):
        with capture_logs() as logs:
            watches.begin(KEY, tap, tap.process_ids())
            await asyncio.wait_for(listening.wait(), SECONDS)
            assert tap.damage() is None
            assert "Input/output error" in await read(tap, CLUSTER)
            await asyncio.wait_for(told.wait(), SECONDS)
        assert tap.damage() is None
        assert f"read {CLUSTER}/{CLUSTER}" in await read(tap, 0)
        with watches.ending(KEY):
            await watches.close()
    assert [(entry["disk"], entry["log_level"]) for entry in logs] == [(str(KEY), "warning")]
    assert "unaligned" in logs[0]["words"]
