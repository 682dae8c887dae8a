"""Threads for calls that may block: as a rule one, that does one call after the other.

Python's threads share one lock, which each gives up around every system call. When several have work, it goes to and
fro between cores with all that they share: a thousand loop disks took half as much CPU again. And to wake one that
sleeps takes longer than most calls, in a virtual machine above all. So one thread does what was asked for, and what is
asked for meanwhile, while the event loop mostly waits. Where it is found blocked in the kernel, as with storage that is
slow or gone, what is behind that call is done by more threads.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, ParamSpec, TypeVar

from reconcilers import sysfs

THREADS_MAX = 4096
"""A hung call has its thread until its storage answers, and as many may hang as there are disks."""

TICK = 0.005
"""Seconds between two looks at calls that are under way. Most are back after a third of that."""

TOLD_TICKS = 5
"""After so many, calls that came back are told of while others go on. The event loop has work then, and the lock goes
to and fro: told seldom, and of many at once, they take a seventh less time."""

BLOCKED_TICKS = 3
"""After being found blocked so often in a row, though calls come back, a thread is held up by storage that is slow.
Every call is blocked for a moment, so that twice means nothing."""

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
        self._to_do = deque[_Call]()
        self._at_work = set[_Run]()
        self._width = 1
        self._ticks = 0
        self._beginning: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:  # type: ignore[override]
        """See `Executor`. It begins after this turn of the event loop, or once what was asked for before is done.

        What is returned is the event loop's own kind of future, which asyncio takes as it is (`asyncio.wrap_future`).
        Another one would have to be made for each of the kind that threads may wait for, and the loop be woken by each.
        """
        call = _Call(partial(fn, *args, **kwargs), self._loop.create_future())
        self._to_do.append(call)
        if self._beginning is None and len(self._at_work) < self._width:
            self._beginning = self._loop.call_soon(self._begin)
        return call.answer

    def _begin(self) -> None:
        """Have as many threads at it as may work."""
        self._beginning = None
        for _ in range(min(self._width - len(self._at_work), len(self._to_do))):
            run = _Run(self._to_do)
            self._at_work.add(run)
            with suppress(RuntimeError):  # no new thread to be had: the first that comes free does it
                super().submit(self._do, run)
        if self._at_work and self._timer is None:
            self._timer = self._loop.call_later(TICK, self._look_after)

    def _do(self, run: "_Run") -> None:
        """In a thread."""
        run.do()
        self._loop.call_soon_threadsafe(self._end, run)

    def _end(self, run: "_Run") -> None:
        run.tell()
        self._at_work.discard(run)
        self._begin()

    def _look_after(self) -> None:
        """Leave threads to themselves that are held up; others do what is still to be done."""
        self._timer = None
        self._ticks += 1
        held_up = [run for run in self._at_work if run.is_held_up()]
        for run in held_up:
            run.left = True  # before it is told: what comes back after that may be the last that is looked at for long
            self._at_work.discard(run)
        for run in (*held_up, *(self._at_work if self._ticks % TOLD_TICKS == 0 else ())):
            run.tell()
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
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(value)


_Outcome = tuple[_Call, Any, BaseException | None]


class _Run:
    """One thread's way through what is to be done, until nothing is left.

    Attributes:
        left: It is to end after the call that holds it up: others have taken its place.
    """

    def __init__(self, to_do: deque[_Call]) -> None:
        self.left = False
        self._to_do = to_do
        self._done = deque[_Outcome]()
        self._thread: int | None = None
        self._blocked_ticks = 0
        self._known = 0
        self._idle_ticks = 0

    def do(self) -> None:
        """In the thread."""
        self._thread = threading.get_native_id()
        with suppress(IndexError):  # the last was done
            while not self.left:
                self._to_do.popleft().do(self._done)

    def tell(self) -> None:
        """Answer the calls that are done."""
        self._known = 0
        while self._done:
            call, *outcome = self._done.popleft()
            call.tell(*outcome)

    def is_held_up(self) -> bool:
        """Whether its thread stays blocked, or no call came back for long."""
        known, self._known = self._known, len(self._done)
        self._idle_ticks = self._idle_ticks + 1 if self._known == known else 0
        blocked = self._thread is not None and _is_blocked(self._thread)
        self._blocked_ticks = self._blocked_ticks + 1 if blocked else 0
        stays = self._blocked_ticks >= BLOCKED_TICKS or (blocked and self._idle_ticks > 0)
        return stays or self._idle_ticks >= LONG_TICKS


def _is_blocked(thread: int) -> bool:
    """Whether a thread of ours sleeps in the kernel, and not for Python's lock (proc_pid_wchan(5))."""
    where = sysfs.glimpse(f"/proc/self/task/{thread}/wchan")  # None: it has ended
    return where is not None and where != b"0" and b"futex" not in where
