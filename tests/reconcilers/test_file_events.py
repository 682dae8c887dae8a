"""What happens to files that disks depend on, from the real inotify: lengths, whatever the name has come to mean."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from reconcilers.file_events import FileEvents, Writer
from reconcilers.pools import Pools
from reconcilers.spec import DiskKey
from reconcilers.trigger import Trigger

KEY = DiskKey("web", "vda")
WAIT = 10.0


async def told_after(events: list[Trigger], act: Callable[[], object]) -> None:
    """Do something and wait until it is told of."""
    await asyncio.sleep(0.05)  # what came before
    events.clear()
    act()
    async with asyncio.timeout(WAIT):
        while not events:  # noqa: ASYNC110 - it is told by a call
            await asyncio.sleep(0.005)


def written(path: Path, size: int = 4096) -> Path:
    path.write_bytes(b"x" * size)
    return path


async def test_an_image_that_has_no_bytes_is_told_of_once_it_has(tmp_path: Path) -> None:
    image, events = written(tmp_path / "a.img", 0), list[Trigger]()
    with FileEvents(lambda _, trigger: events.append(trigger), Pools(folders=(tmp_path,))) as files:
        files.follow(KEY, str(image), writer=Writer.KERNEL)
        assert files.follow_length(KEY, None)
        assert not files.follow_length(KEY, None)
        await told_after(events, lambda: os.truncate(image, 4096))


async def test_a_watch_on_the_file_that_had_the_name_before_gives_way(tmp_path: Path) -> None:
    image, events = written(tmp_path / "a.img"), list[Trigger]()
    with FileEvents(lambda _, trigger: events.append(trigger), Pools(folders=(tmp_path,))) as files:
        files.follow(KEY, str(image), writer=Writer.KERNEL)
        former = os.open(image, os.O_PATH)
        image.rename(tmp_path / "kept.img")
        written(tmp_path / "new.img").rename(image)
        await asyncio.sleep(0.05)  # the loop hears of the renaming before the thread that pinned the former comes to it
        assert files.follow_length(KEY, former)
        present = os.open(image, os.O_PATH)
        assert files.follow_length(KEY, present)
        assert not files.follow_length(KEY, present)
        await told_after(events, lambda: os.truncate(image, 8192))
        os.close(former)
        os.close(present)


async def test_an_image_that_is_gone_is_no_error(tmp_path: Path) -> None:
    with FileEvents(lambda *_: None, Pools(folders=(tmp_path,))) as files:
        files.follow(KEY, str(tmp_path / "a.img"), writer=Writer.KERNEL)
        assert not files.follow_length(KEY, None)
