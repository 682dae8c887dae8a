"""The disks that are being worked on: a step that takes long is shown, and one that seems to hang gives way."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.events import Cause
from reconcilers.actual import Attached
from reconcilers.plan import Step
from reconcilers.spec import DiskKey

SLOW_SECONDS = 0.5
"""A step that takes longer is shown while it lasts."""


@dataclass(frozen=True, slots=True)
class Occasion:
    """What made us look at a disk, when, and the trace that it belongs to."""

    cause: Cause
    at: float
    trace_id: str


@dataclass(slots=True)
class Work:
    """What is being done about one disk. Times are on the monotonic clock, which is the event loop's.

    Attributes:
        until: When it counts as hanging.
        since: When the step was begun; before there is one, when the work was.
        step: The step that was begun, has not ended and was not shown.
        attached: The disk before that step.
        hangs: It did not end in time.
    """

    key: DiskKey
    occasion: Occasion
    until: float
    since: float
    step: Step | None = None
    attached: Attached | None = None
    hangs: bool = False

    def begin(self, step: Step, attached: Attached | None = None) -> None:
        """A step begins."""
        self.since, self.step, self.attached = time.monotonic(), step, attached

    def due(self, now: float) -> float:
        """When it is to be looked after again."""
        return min(self.until, (self.since if self.step else now) + SLOW_SECONDS)


class AtWork:
    """The disks at work. One timer looks after all of them, as nearly every disk is done before it is due.

    Args:
        show: Told of work whose step takes long, once a step.
        give_way: Told of work that hangs, once.
    """

    def __init__(self, *, show: Callable[[Work, Step], None], give_way: Callable[[Work], None]) -> None:
        self._show = show
        self._give_way = give_way
        self._works: dict[DiskKey, Work] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __contains__(self, key: DiskKey) -> bool:
        return key in self._works

    def __len__(self) -> int:
        return len(self._works)

    def add(self, work: Work) -> None:
        """Work begins."""
        self._works[work.key] = work
        if self._timer is None:
            self._look_again(work.since)

    def remove(self, work: Work) -> None:
        """It has ended."""
        del self._works[work.key]

    def close(self) -> None:
        """Look after nothing any more."""
        if self._timer:
            self._timer.cancel()

    def _look_again(self, now: float) -> None:
        due = [work.due(now) for work in self._works.values() if not work.hangs]
        self._timer = asyncio.get_running_loop().call_at(min(due), self._look_after) if due else None

    def _look_after(self) -> None:
        now = time.monotonic()
        try:
            for work in [work for work in self._works.values() if not work.hangs]:
                if now >= work.until:
                    work.hangs = True
                    self._give_way(work)
                elif work.step and now >= work.since + SLOW_SECONDS:
                    self._show(work, work.step)
                    work.step = None
        finally:
            self._look_again(now)
