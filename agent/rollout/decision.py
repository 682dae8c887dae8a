"""What a rollout does next: one pure function from where it stands to one step."""

from dataclasses import dataclass
from enum import StrEnum


class Step(StrEnum):
    """What to do."""

    PUBLISH = "publish the wave's documents"
    WAIT = "wait for the wave's hosts"
    NEXT = "go on to the next wave"
    FINISH = "nothing is left to do"
    STOP_OVERTAKEN = "somebody else pushes to the same hosts"
    STOP_CANARY = "a host of the canary failed"
    STOP_LIMIT = "more hosts failed than may"


STOPS = frozenset({Step.STOP_OVERTAKEN, Step.STOP_CANARY, Step.STOP_LIMIT})
"""Steps after which nothing more is published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Where a rollout stands.

    Attributes:
        last: The wave is the last one.
        canary: The wave is the canary, in which no host may fail.
        published: The wave's documents are all on the bus.
        expired: The wave's time is up.
        waiting: Hosts of the wave without an outcome.
        failed: Hosts of the wave that failed.
        failed_before: Hosts of earlier waves that failed.
        max_failed: How many may fail in all.
        overtaken: Hosts that somebody else pushed to since this drive began.
    """

    last: bool
    canary: bool
    published: bool
    expired: bool
    waiting: int
    failed: int
    failed_before: int
    max_failed: int
    overtaken: int


def decide(now: Situation) -> Step:
    """What to do next."""
    if against := _what_speaks_against(now):
        return against
    if not now.published:
        return Step.PUBLISH
    if now.waiting and not now.expired:
        return Step.WAIT
    return Step.FINISH if now.last else Step.NEXT


def _what_speaks_against(now: Situation) -> Step | None:
    """Why nothing more may be published. Who is silent when time is up counts as failed."""
    if now.overtaken:
        return Step.STOP_OVERTAKEN
    failed = now.failed + (now.waiting if now.expired else 0)
    if now.canary and failed:
        return Step.STOP_CANARY
    return Step.STOP_LIMIT if now.failed_before + failed > now.max_failed else None
