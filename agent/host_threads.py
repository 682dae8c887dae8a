"""Threads for calls that may block: calls that are asked for together are done in one thread.

Python's threads share one lock, which each gives up around every system call. When several have work, it goes to and
fro between cores with all that they share: a thousand loop disks took half as much CPU again. Here one thread does
what was asked for, one call after the other, while the event loop mostly waits for all of it. A call that is blocked
in the kernel holds up nobody: another thread goes on with what is behind it.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

THREADS_MAX = 4096
"""A hung call has its thread until its storage answers, and as many may hang as there are disks."""

TICK = 0.005
"""Seconds between two looks at calls that are under way. Most are back after a third of that."""

LONG_TICKS = 10
"""After so many without a call that came back another thread goes on, whatever the kernel says."""

P = ParamSpec("P")
T = TypeVar("T")


class HostThreads(ThreadPoolExecutor):
    """An executor for one event loop, to be used from that loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(THREADS_MAX, thread_name_prefix="host")
        self._loop = loop
        self._asked_for: list[_Call] = []
        self._under_way: _Batch | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """See `Executor`. It begins after this turn of the event loop, or once what is under way has come back."""
        call = _Call(partial(fn, *args, **kwargs))
        if not self._asked_for:
            self._loop.call_soon(self._begin)
        self._asked_for.append(call)
        return call.answer

    def _begin(self) -> None:
        if self._under_way is not None or not self._asked_for:
            return
        batch = self._under_way = _Batch(self._asked_for)
        self._asked_for = []
        self._loop.call_later(TICK, self._look_after, batch)
        with suppress(RuntimeError):  # no new thread to be had: the first that comes free does it
            super().submit(self._do, batch)

    def _do(self, batch: "_Batch") -> None:
        """In a thread."""
        batch.do()
        self._loop.call_soon_threadsafe(self._end, batch)

    def _end(self, batch: "_Batch") -> None:
        batch.tell()
        if batch is self._under_way:
            self._under_way = None
            self._begin()

    def _look_after(self, batch: "_Batch") -> None:
        """Leave a batch to itself that is held up: the next one takes its other calls along."""
        if batch is not self._under_way:
            return
        if batch.is_held_up():
            self._under_way = None
            self._asked_for = [*batch.rest(), *self._asked_for]
            self._begin()
        else:
            self._loop.call_later(TICK, self._look_after, batch)


class _Call:
    """One call, and what comes of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.answer: Future[Any] = Future()
        self.tell: Callable[[], None] = lambda: None
        self._work = work

    def do(self) -> None:
        """Do it, unless nobody waits for it any more. `tell` has the answer then, for the event loop's thread."""
        if not self.answer.set_running_or_notify_cancel():
            return
        try:
            self.tell = partial(self.answer.set_result, self._work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the call was asked for
            self.tell = partial(self.answer.set_exception, error)


class _Batch:
    """Calls that are done in one thread, and then answered together."""

    def __init__(self, calls: list[_Call]) -> None:
        self._to_do = deque(calls)
        self._done = deque[_Call]()
        self._thread: int | None = None
        self._idle_ticks = 0

    def do(self) -> None:
        """In the thread."""
        self._thread = threading.get_native_id()
        with suppress(IndexError):  # the last was done, or the next batch has it
            while True:
                call = self._to_do.popleft()
                call.do()
                self._done.append(call)

    def tell(self) -> bool:
        """Answer the calls that are done; returns whether there was any."""
        any_done = bool(self._done)
        while self._done:
            self._done.popleft().tell()
        return any_done

    def rest(self) -> list[_Call]:
        """Give away the calls that were not begun."""
        calls = list[_Call]()
        with suppress(IndexError):
            while True:
                calls.append(self._to_do.popleft())
        return calls

    def is_held_up(self) -> bool:
        """Whether no call came back since the last tick, and the thread is blocked. Answers those that did."""
        self._idle_ticks = 0 if self.tell() else self._idle_ticks + 1
        if self._idle_ticks >= LONG_TICKS:
            return True
        return self._idle_ticks > 0 and self._thread is not None and _is_blocked(self._thread)


def _is_blocked(thread: int) -> bool:
    """Whether a thread of ours sleeps in the kernel, and not for Python's lock (proc_pid_wchan(5))."""
    try:
        where = Path(f"/proc/self/task/{thread}/wchan").read_text(encoding="ascii")
    except OSError:  # it has ended
        return False
    return where != "0" and "futex" not in where
