"""Events that the broker has not acknowledged yet, on disk for the agent's next run.

An event is history and no document: nothing depends on it. So it is written when it could not be delivered within a
second, and not synced: it outlives the agent, killed or not, and what the host's power takes with it is lost. After an
agent was killed an event may be delivered twice, and says so by its id.
"""

import asyncio
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import structlog

from agent.bus.outbox import Outbox, Publication

log: structlog.stdlib.BoundLogger = structlog.get_logger()

ROOM = 10_000
"""Events that are kept, of half a kilobyte each."""

DELIVERY_SECONDS = 1.0
"""What the broker acknowledges within this time is never written."""

COLLECT_SECONDS = 0.5
"""So long it waits for company: each look goes over all that waits."""

LAST_SECONDS = 1.0
"""How long the end of the agent waits for the disk."""


class Spooled(NamedTuple):
    """What an earlier run has left: its events, the oldest first, and how many it had to drop."""

    events: Sequence[Publication]
    dropped: int


class SpoolFile:
    """One JSON object a line: an event with its topic, or how many were dropped until then. All methods block."""

    def __init__(self, path: Path, room: int) -> None:
        self._path = path
        self._room = room
        self._lines = 0

    def load(self) -> Spooled:
        """Read it. Raises OSError; a line that is not whole is what the end of an agent or a host cut short."""
        events, dropped = list[Publication](), 0
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            for line in file:
                self._lines += 1
                with suppress(ValueError, KeyError, TypeError, AttributeError):
                    table = json.loads(line)
                    if "dropped" in table:
                        dropped = int(table["dropped"])
                    else:
                        events.append(Publication(str(table["topic"]), table["payload"].encode(), retain=False))
        return Spooled(events[-self._room :], dropped)

    def add(self, events: Sequence[Publication], dropped: int) -> None:
        """Put events behind those that are there. Raises OSError."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(_lines(events, dropped))
        self._lines += len(events) + 1

    def replace(self, events: Sequence[Publication], dropped: int) -> None:
        """Keep these events instead of those that are there. Raises OSError."""
        if not events:
            self._path.unlink(missing_ok=True)
        else:
            draft = self._path.with_name(f"{self._path.name}.new")
            draft.unlink(missing_ok=True)
            SpoolFile(draft, self._room).add(events, dropped)
            draft.replace(self._path)
        self._lines = len(events) and len(events) + 1

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return self._lines == 0

    def has_room(self, more: int) -> bool:
        """Whether so many can be added; it holds up to twice what counts, so that it is seldom written anew."""
        return self._lines + more <= 2 * self._room


class Spool:
    """Keeps what the outbox could not deliver in a file, and takes it out again when that was delivered."""

    def __init__(self, path: Path, outbox: Outbox) -> None:
        self._path = path
        self._file = SpoolFile(path, outbox.room)
        self._outbox = outbox
        self._kept = 0
        self._failing = False

    async def load(self) -> None:
        """Put what an earlier run has left into the outbox, before anything else is."""
        try:
            events, dropped = await asyncio.to_thread(self._file.load)
        except OSError as error:
            log.warning("events that were not delivered before the restart can't be read", why=str(error))
            return
        self._outbox.dropped += dropped
        for event in events:
            self._outbox.append(event.topic, event.payload)
        self._kept = self._outbox.numbered

    async def run(self) -> NoReturn:
        """Follow the outbox."""
        pause = DELIVERY_SECONDS
        while True:
            await self._outbox.stirred.wait()
            await asyncio.sleep(pause)
            pause = await self._follow(time.monotonic() - DELIVERY_SECONDS)

    async def close(self) -> None:
        """Keep what could not be delivered in the end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self._follow(math.inf)

    async def _follow(self, came_before: float) -> float:
        """Have in the file what came before a time and was not delivered; returns seconds until the next is due."""
        self._outbox.stirred.clear()
        events = self._outbox.events()
        waiting = {number: one for number, one in events.items() if number <= self._kept or one.since <= came_before}
        await self._keep(waiting)
        younger = next((one for number, one in events.items() if number not in waiting), None)
        if younger is None:
            return DELIVERY_SECONDS
        self._outbox.stirred.set()
        return max(COLLECT_SECONDS, younger.since - came_before)

    async def _keep(self, waiting: Mapping[int, Publication]) -> None:
        fresh = [event for number, event in waiting.items() if number > self._kept]
        if self._file.is_empty if not waiting else not fresh:
            return
        try:
            await asyncio.to_thread(self._write, list(waiting.values()), fresh, self._outbox.dropped)
        except OSError as error:
            (log.debug if self._failing else log.warning)(
                "events can't be kept on disk: they are lost if the agent ends before the broker has them",
                file=str(self._path),
                why=str(error),
            )
            self._failing = True
        else:
            self._kept, self._failing = max(waiting, default=self._kept), False

    def _write(self, waiting: Sequence[Publication], fresh: Sequence[Publication], dropped: int) -> None:
        if waiting and self._file.has_room(len(fresh) + 1):
            self._file.add(fresh, dropped)
        else:
            self._file.replace(waiting, dropped)


def _lines(events: Sequence[Publication], dropped: int) -> bytes:
    tables = [{"topic": event.topic, "payload": event.payload.decode()} for event in events]
    return b"".join(json.dumps(table).encode() + b"\n" for table in [{"dropped": dropped}, *tables])
