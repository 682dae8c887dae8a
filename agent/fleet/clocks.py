"""Clocks of hosts that are ahead of this machine's, as far as the times that hosts tell give them away. Pure.

Nothing is decided by them, but ages are shown by them. A clock that is behind looks like a status that is old.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from agent.fleet.view import Fleet
from agent.fleet.words import names
from agent.status import GuestStatus

SKEW = timedelta(seconds=5)
"""How far another machine's clock may be ahead before it is said."""


def ahead(fleet: Fleet, at: datetime) -> dict[str, timedelta]:
    """How far each host's clock is ahead at least, for hosts where it is so by more than `SKEW`.

    Args:
        fleet: What hosts say.
        at: The time by this machine's clock.
    """
    latest = dict[str, datetime]()
    for host, time in _times(fleet):
        latest[host] = max(time, latest.get(host, time))
    return {host: time - at for host, time in sorted(latest.items()) if time - at > SKEW}


def told(fleet: Fleet, at: datetime) -> str | None:
    """The same in a sentence; None if there is nothing to say."""
    found = ahead(fleet, at)
    if not found:
        return None
    clocks = "the clock is" if len(found) == 1 else "clocks are up to"
    seconds = max(found.values()).total_seconds()
    return (
        f"{names(list(found))}: {clocks} {seconds:.0f} s ahead of this machine's, or this one's is behind, so ages "
        "from there are wrong; `tapster doctor` says on a machine whether its clock is kept in time"
    )


def _times(fleet: Fleet) -> Iterator[tuple[str, datetime]]:
    for (host, _), status in fleet.guests.items():
        yield from ((host, time) for time in _times_of(status))
    for host, glance in fleet.glances.items():
        yield from ((host, one.last_transition_time) for one in glance.conditions)
        if glance.last_sync:
            yield host, glance.last_sync


def _times_of(status: GuestStatus) -> Iterator[datetime]:
    yield from (one.last_transition_time for one in status.conditions)
    yield from (disk.since for disk in status.disks)
