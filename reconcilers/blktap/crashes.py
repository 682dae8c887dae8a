"""Servers that die again and again: when one may be started anew, and when that is given up for a while."""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from reconcilers.errors import DiskError
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey

WINDOW_SECONDS = 600.0
"""What is longer ago does not count."""

MOST = 5
"""After so many deaths within the window, no other server is started until the oldest of them is out of it."""


@dataclass(frozen=True, slots=True)
class _Death:
    at: float
    log: str


class Crashes:
    """Remembers the deaths of each disk's servers. In memory only: a new agent gives each disk a new chance."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Args: seconds of a clock that only goes forward."""
        self._clock = clock
        self._deaths: dict[DiskKey, deque[_Death]] = defaultdict(lambda: deque(maxlen=MOST))

    def note(self, key: DiskKey, log: str) -> None:
        """A server has died that nobody had asked to end; `log` is the end of what it printed."""
        self._deaths[key].append(_Death(self._clock(), log))

    def refuse_too_soon(self, key: DiskKey) -> None:
        """The second death in a row waits a second, the next two and four; the fifth for the rest of the window.

        Raises:
            DiskError: ServerCrashes, with the last log lines.
        """
        now = self._clock()
        recent = [death for death in self._deaths.get(key, ()) if death.at > now - WINDOW_SECONDS]
        if not recent:
            return
        first, last, count = recent[0], recent[-1], len(recent)
        again = first.at + WINDOW_SECONDS if count == MOST else last.at + (2.0 ** (count - 2) if count > 1 else 0.0)
        if now >= again:
            return
        message = (
            f"its server died {count} times in {last.at - first.at:.0f} s, and another one is started in "
            f"{again - now:.0f} s. It said last: {last.log or 'nothing'}"
        )
        raise DiskError(Reason.SERVER_CRASHES, message)
