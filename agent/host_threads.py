"""Threads for calls that may block: calls that are asked for together are done in one thread.

Python's threads share one lock, which each gives up around every system call. When several have work, it goes to and
fro between cores with all that they share: a thousand loop disks took half as much CPU again. Here one thread does
what was asked for, one call after the other, while the event loop mostly waits for all of it. Where it is found
blocked in the kernel, as with storage that is slow or gone, what is behind that call goes to more threads.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

THREADS_MAX = 4096
"""A hung call has its thread until its storage answers, and as many may hang as there are disks."""

TICK = 0.005
"""Seconds between two looks at calls that are under way. Most are back after a third of that."""

LONG_TICKS = 10
"""After so many without a call that came back the others go elsewhere, whatever the kernel says."""

WIDTH_MAX = 16
"""Threads that work at the same time, besides those that are blocked."""

P = ParamSpec("P")
T = TypeVar("T")


class HostThreads(ThreadPoolExecutor):
    """An executor for one event loop, to be used from that loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(THREADS_MAX, thread_name_prefix="host")
        self._loop = loop
        self._asked_for: list[_Call] = []
        self._under_way = set[_Batch]()
        self._width = 1
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:  # type: ignore[override]
        """See `Executor`. It begins after this turn of the event loop, or once what is under way has come back.

        What is returned is the event loop's own kind of future, which asyncio takes as it is (`asyncio.wrap_future`).
        Another one would have to be made for each of the kind that threads may wait for, and the loop be woken by each.
        """
        call = _Call(partial(fn, *args, **kwargs), self._loop.create_future())
        if not self._asked_for:
            self._loop.call_soon(self._begin)
        self._asked_for.append(call)
        return call.answer

    def _begin(self) -> None:
        """Spread what was asked for over as many threads as may work."""
        while self._asked_for and (free := self._width - len(self._under_way)) > 0:
            share = -(-len(self._asked_for) // free)
            batch = _Batch(self._asked_for[:share])
            del self._asked_for[:share]
            self._under_way.add(batch)
            with suppress(RuntimeError):  # no new thread to be had: the first that comes free does it
                super().submit(self._do, batch)
        if self._under_way and self._timer is None:
            self._timer = self._loop.call_later(TICK, self._look_after)

    def _do(self, batch: "_Batch") -> None:
        """In a thread."""
        batch.do()
        self._loop.call_soon_threadsafe(self._end, batch)

    def _end(self, batch: "_Batch") -> None:
        batch.tell()
        self._under_way.discard(batch)
        self._begin()

    def _look_after(self) -> None:
        """Leave batches to themselves that are held up; others take their calls, by more threads."""
        self._timer = None
        held_up = [batch for batch in self._under_way if batch.is_held_up()]
        for batch in held_up:
            self._under_way.discard(batch)
            self._asked_for = [*batch.rest(), *self._asked_for]
        self._width = min(2 * self._width, WIDTH_MAX) if held_up else max(self._width - 1, 1)
        self._begin()


class _Call(NamedTuple):
    """One call, and where its answer goes, which is for the event loop's thread."""

    work: Callable[[], Any]
    answer: asyncio.Future[Any]

    def do(self, done: "deque[_Outcome]") -> None:
        """Do it, unless nobody waits for it any more, and note what came of it."""
        if self.answer.cancelled():
            return
        try:
            done.append((self, self.work(), None))
        except StopIteration:  # no future takes one
            done.append((self, None, RuntimeError("a call in a thread has raised StopIteration")))
        except BaseException as error:  # noqa: BLE001 - it is raised where the call was asked for
            done.append((self, None, error))
            del self  # the error holds this frame, which would hold the answer, which holds the error

    def tell(self, value: Any, error: BaseException | None) -> None:
        """Answer with what came of it, unless nobody waits for it any more."""
        if self.answer.done():
            return
        if error:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(value)


_Outcome = tuple[_Call, Any, BaseException | None]


class _Batch:
    """Calls that are done in one thread, and then answered together."""

    def __init__(self, calls: list[_Call]) -> None:
        self._to_do = deque(calls)
        self._done = deque[_Outcome]()
        self._thread: int | None = None
        self._was_blocked = False
        self._idle_ticks = 0

    def do(self) -> None:
        """In the thread."""
        self._thread = threading.get_native_id()
        with suppress(IndexError):  # the last was done, or the next batch has it
            while True:
                self._to_do.popleft().do(self._done)

    def tell(self) -> bool:
        """Answer the calls that are done; returns whether there was any."""
        any_done = bool(self._done)
        while self._done:
            call, *outcome = self._done.popleft()
            call.tell(*outcome)
        return any_done

    def rest(self) -> list[_Call]:
        """Give away the calls that were not begun."""
        calls = list[_Call]()
        with suppress(IndexError):
            while True:
                calls.append(self._to_do.popleft())
        return calls

    def is_held_up(self) -> bool:
        """Whether its thread stays blocked, or no call came back for long. Answers those that did."""
        self._idle_ticks = 0 if self.tell() else self._idle_ticks + 1
        was_blocked, self._was_blocked = self._was_blocked, self._thread is not None and _is_blocked(self._thread)
        return self._idle_ticks >= LONG_TICKS or (self._was_blocked and (was_blocked or self._idle_ticks > 0))


def _is_blocked(thread: int) -> bool:
    """Whether a thread of ours sleeps in the kernel, and not for Python's lock (proc_pid_wchan(5))."""
    try:
        where = Path(f"/proc/self/task/{thread}/wchan").read_text(encoding="ascii")
    except OSError:  # it has ended
        return False
    return where != "0" and "futex" not in where
