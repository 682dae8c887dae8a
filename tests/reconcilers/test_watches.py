"""Whose end a server's end was, and what it said last."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconcilers.blktap.crashes import Crashes
from reconcilers.blktap.tap import TapFolder
from reconcilers.blktap.watches import TapWatches
from reconcilers.errors import DiskError
from reconcilers.spec import DiskKey

KEY = DiskKey("vm1", "vda")


@pytest.fixture
def tap(tmp_path: Path) -> TapFolder:
    folder = TapFolder(tmp_path)
    folder.log.write_text("Assertion failed.\n")
    return folder


@contextmanager
def running_server() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


async def test_a_death_is_counted_with_its_last_words_before_its_folder_goes(tap: TapFolder) -> None:
    crashes = Crashes(lambda: 0.0)
    watches = TapWatches(crashes, lambda _key: None)
    for _ in range(2):
        with running_server() as server:
            watches.begin(KEY, tap, [server.pid])
            asyncio.get_running_loop().call_later(0.05, server.kill)
            await watches.end_noted(KEY)
    tap.log.unlink()
    with pytest.raises(DiskError, match=r"died 2 times .* Assertion failed\."):
        crashes.refuse_too_soon(KEY)


async def test_an_end_that_we_brought_about_is_no_death(tap: TapFolder) -> None:
    crashes, told = Crashes(lambda: 0.0), asyncio.Event()
    watches = TapWatches(crashes, lambda _key: told.set())
    for _ in range(2):
        told.clear()
        with running_server() as server, watches.ending(KEY):
            watches.begin(KEY, tap, [server.pid])
            server.kill()
            await told.wait()
    crashes.refuse_too_soon(KEY)
    assert KEY not in watches
