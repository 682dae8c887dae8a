"""What waits to be published. It outlives connections, so nothing is lost while there is none."""

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice
from time import monotonic
from typing import NamedTuple

COMPANY_SECONDS = 0.1
"""So long an event waits for the state that comes of it, so that both, and all other events, go out together."""


class Publication(NamedTuple):
    """One message to publish.

    Attributes:
        since: When an event came, on the monotonic clock.
    """

    topic: str
    payload: bytes
    retain: bool
    since: float = 0.0


class Outbox:
    """Retained messages, of which only the latest on each topic counts, and events, all of which count, in order.

    One taker at a time: it asks for a `batch`, and calls `delivered` when the broker has all of it. Until then
    every `batch` is the same one, so that a new connection begins with what the last one may not have delivered.

    Attributes:
        room: Events that may wait. With more, the oldest are dropped.
        dropped: How many were.
        numbered: The number of the newest event.
        stirred: Set when an event has come, or events were delivered.
    """

    def __init__(self, *, room: int) -> None:
        self.room = room
        self.dropped = 0
        self.numbered = 0
        self.stirred = asyncio.Event()
        self._waiting: dict[str | int, Publication] = {}
        self._events: deque[int] = deque()
        self._taken: dict[str | int, Publication] = {}
        self._due = asyncio.Event()
        self._company: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._taken) + len(self._waiting)

    def __bool__(self) -> bool:
        return bool(self._taken or self._waiting)

    def retain(self, topic: str, payload: bytes) -> None:
        """Publish this, retained, unless something newer on the topic comes first."""
        self._waiting[topic] = Publication(topic, payload, retain=True)
        self._due.set()

    def append(self, topic: str, payload: bytes) -> None:
        """Publish this after every event before it."""
        if len(self._events) == self.room:
            del self._waiting[self._events.popleft()]
            self.dropped += 1
        self.numbered += 1
        self._events.append(self.numbered)
        self._waiting[self.numbered] = Publication(topic, payload, retain=False, since=monotonic())
        self.stirred.set()
        if self._company is None:
            self._company = asyncio.get_running_loop().call_later(COMPANY_SECONDS, self._due.set)

    def events(self) -> dict[int, Publication]:
        """The events that were not delivered yet, by their numbers, the oldest first."""
        both = (*self._taken.items(), *self._waiting.items())
        return {number: event for number, event in both if isinstance(number, int)}

    async def batch(self, size: int) -> Sequence[Publication]:
        """Wait until there is something to publish, and give at most `size` of it, the oldest first."""
        if not self._taken:
            await self._due.wait()
            self._taken = {key: self._waiting.pop(key) for key in list(islice(self._waiting, size))}
            for key in self._taken:
                if isinstance(key, int):
                    self._events.popleft()
            if not self._waiting:
                self._due.clear()
                if self._company:
                    self._company.cancel()
                    self._company = None
        return list(self._taken.values())

    def hurry(self) -> None:
        """Have what waits go out now, because there is little time."""
        if self._waiting:
            self._due.set()

    def delivered(self) -> None:
        """The broker has the last batch."""
        if any(isinstance(key, int) for key in self._taken):
            self.stirred.set()
        self._taken = {}
