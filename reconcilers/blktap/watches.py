"""Watching taps: when a server ends, whether that was a crash, and what it says until then."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import structlog

from reconcilers.blktap.crashes import Crashes
from reconcilers.blktap.server_events import ServerEvents
from reconcilers.blktap.tap import TapFolder
from reconcilers.process import ExitWatch
from reconcilers.spec import DiskKey

log: structlog.stdlib.BoundLogger = structlog.get_logger()

CLOSE_SECONDS = 2.0

END_SECONDS = 0.5
"""How much later than its locks and mounts a dying process may go. It takes a millisecond on a host that has time."""


@dataclass(frozen=True, slots=True)
class _Watch:
    """On the processes of one tap, and on what one of them tells."""

    exits: list[ExitWatch]
    events: ServerEvents
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def close(self) -> None:
        for each in self.exits:
            each.close()
        self.events.close()
        self.over.set()


class TapWatches:
    """One for each tap whose server runs."""

    def __init__(self, crashes: Crashes, on_change: Callable[[DiskKey], None]) -> None:
        """Args: where servers that nobody ended are noted; who is told that one has ended or is in trouble."""
        self._crashes = crashes
        self._on_change = on_change
        self._watches: dict[DiskKey, _Watch] = {}
        self._listening: set[asyncio.Task[None]] = set()
        self._ending: set[DiskKey] = set()

    def __contains__(self, key: DiskKey) -> bool:
        return key in self._watches

    def begin(self, key: DiskKey, tap: TapFolder, pids: Iterable[int]) -> None:
        """Be told when a server or its relay ends, and of what it says until then."""

        def ended() -> None:
            self._forget(key)
            if key not in self._ending:
                self._crashes.note(key, tap.last_log_lines())
            self._on_change(key)

        async def damaged(words: str) -> None:
            log.warning("a server found its image corrupt", disk=str(key), words=words)
            await asyncio.to_thread(tap.note_damage, words)
            self._on_change(key)

        async def said(event: str, words: str) -> None:
            log.warning("a server tells of trouble", disk=str(key), qmp_event=event, words=words)
            self._on_change(key)

        self._forget(key)
        talker = tap if tap.events.exists() else tap.relay
        events = ServerEvents(talker.events, damaged, said)
        self._listening.add(events.listening)
        events.listening.add_done_callback(self._listening.discard)
        self._watches[key] = _Watch([ExitWatch(pid, ended) for pid in pids], events)

    @contextmanager
    def ending(self, key: DiskKey) -> Iterator[None]:
        """We end the server: that it ends is no crash, and what it says then no news."""
        if watch := self._watches.get(key):
            watch.events.close()
        self._ending.add(key)
        try:
            yield
        finally:
            self._ending.discard(key)

    async def end_noted(self, key: DiskKey) -> None:
        """Have the crash of a server counted that is known to be dying, before what is left of it is cleared away.

        Its locks and mounts go before the kernel says that it has ended, and with its folder goes what it said last.
        """
        if watch := self._watches.get(key):
            with suppress(TimeoutError):  # its export was taken away from it, and it goes on
                await asyncio.wait_for(watch.over.wait(), END_SECONDS)

    async def close(self) -> None:
        """Stop watching; the servers go on."""
        for key in list(self._watches):
            self._forget(key)
        if self._listening:
            await asyncio.wait(self._listening, timeout=CLOSE_SECONDS)

    def _forget(self, key: DiskKey) -> None:
        if watch := self._watches.pop(key, None):
            watch.close()
