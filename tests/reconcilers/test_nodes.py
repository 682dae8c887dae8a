"""What a server must have open, against what real servers have that were led astray."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from reconcilers.blktap.nodes import node_arguments, strangers
from reconcilers.blktap.storage_daemon import StorageDaemon, version
from reconcilers.blktap.tap import TapFolder, TapRecord
from reconcilers.errors import DiskError
from reconcilers.jail.launcher import Launcher
from reconcilers.jail.profile import Jail
from reconcilers.reason import Reason
from reconcilers.spec import Format
from reconcilers.tuning import UNTUNED, Aio
from tests.images.makers import create, put


def record_of(image: Path, **more: object) -> TapRecord:
    facts = image.stat()
    record = TapRecord(
        guest="vm1",
        target="vda",
        source=str(image),
        device=facts.st_dev,
        inode=facts.st_ino,
        format=Format.QCOW2,
        read_only=False,
        slice_offset=0,
        slice_size=None,
        server="",
        asked=UNTUNED,
        tuning=replace(UNTUNED, io=Aio.THREADS),
        throttled=True,
    )
    return record.model_copy(update=more)


def serve(tap: TapFolder, image: Path) -> None:
    """Have a server open the image without any check before it, and end it."""

    async def spawn_and_stop(fd: int) -> None:
        launcher = Launcher()
        server = StorageDaemon(await version() or "", launcher, Jail.REQUIRE)
        try:
            await server.spawn(tap, [fd], within=20)
            await server.stop(tap, within=20)
        finally:
            launcher.close()

    fd = os.open(image, os.O_RDWR)
    try:
        asyncio.run(spawn_and_stop(fd))
    finally:
        os.close(fd)


@pytest.fixture
def tap(tmp_path: Path) -> TapFolder:
    return TapFolder(tmp_path / "tap")


def test_a_server_that_opened_another_file_is_ended(host_parts: None, tmp_path: Path, tap: TapFolder) -> None:
    """`backing: null` does not keep QEMU from a data file that the header names; its jail does, behind the check."""
    (tmp_path / "elsewhere").write_bytes(bytes(1 << 20))
    image = create(tmp_path / "a.qcow2", Format.QCOW2, f"data_file={tmp_path}/elsewhere", "1M")
    tap.prepare(record_of(image))
    with pytest.raises(DiskError) as refused:
        serve(tap, image)
    assert refused.value.reason is Reason.SERVER_FAILED
    assert "elsewhere': No such file or directory" in refused.value.message
    assert not tap.alive()
    tap.remove()


def test_a_backing_file_is_not_opened(host_parts: None, tmp_path: Path, tap: TapFolder) -> None:
    image = create(tmp_path / "a.qcow2", Format.QCOW2, size="1M")
    put(">QI", 8, 1024, 11)(image)
    with image.open("r+b") as file:
        file.seek(1024)
        file.write(b"/etc/shadow")
    tap.prepare(record_of(image))
    serve(tap, image)
    tap.remove()


OURS = [
    {"node-name": "image", "drv": "file", "file": "/proc/self/fd/12"},
    {"node-name": "format", "drv": "qcow2", "file": "/proc/self/fd/12"},
    {"node-name": "limits", "drv": "throttle", "file": "/proc/self/fd/12"},
]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], ""),
        ([{"node-name": "#block1", "drv": "file", "file": "/etc/shadow"}], "#block1"),
        ([{"node-name": "image", "drv": "file", "file": "/proc/self/fd/12"}], "image"),
    ],
)
def test_strangers_are_named(tmp_path: Path, more: list[dict[str, object]], words: str) -> None:
    record = record_of(tmp_path)
    found = ", ".join(strangers(record, [*OURS, *more]))
    assert bool(found) is bool(more)
    assert words in found
    assert node_arguments(record, [12])


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (0, {"file": "/etc/shadow"}),
        (0, {"file": "/proc/self/fd/12/../../etc/shadow"}),
        (0, {"drv": "nbd"}),
        (1, {"drv": "raw"}),
        (1, {"node-name": "other"}),
    ],
)
def test_what_is_not_as_it_was_given(tmp_path: Path, index: int, change: dict[str, object]) -> None:
    nodes: list[dict[str, object]] = [dict(node) for node in OURS]
    nodes[index] |= change
    assert list(strangers(record_of(tmp_path), nodes))
    assert list(strangers(record_of(tmp_path), nodes[1 - index :][:1]))
