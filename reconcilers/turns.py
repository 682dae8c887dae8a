"""Who wants an image tries for it alone: disks that try at once find each other's locks, and none of them gets it."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from reconcilers.actual import FileId


class Turns:
    """One turn an image at a time, for threads and for tasks of one event loop."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = set[FileId]()
        self._waiting = defaultdict[FileId, list[Callable[[], object]]](list)

    @contextmanager
    def at_once(self, image: FileId) -> Iterator[bool]:
        """Have the turn for the length of the block, if nobody has it; says whether. For threads, which don't wait."""
        mine = self._take(image, None)
        try:
            yield mine
        finally:
            if mine:
                self._give_back(image)

    @asynccontextmanager
    async def in_turn(self, image: FileId) -> AsyncIterator[None]:
        """Have the turn for the length of the block, once nobody has it."""
        loop, given_back = asyncio.get_running_loop(), asyncio.Event()
        while not self._take(image, partial(loop.call_soon_threadsafe, given_back.set)):
            await given_back.wait()
            given_back.clear()
        try:
            yield
        finally:
            self._give_back(image)

    def _take(self, image: FileId, wake: Callable[[], object] | None) -> bool:
        with self._guard:
            if image not in self._taken:
                self._taken.add(image)
                return True
            if wake:
                self._waiting[image].append(wake)
            return False

    def _give_back(self, image: FileId) -> None:
        with self._guard:
            self._taken.discard(image)
            waiting = self._waiting.pop(image, [])
        for wake in waiting:
            wake()
