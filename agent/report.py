"""What became of one disk: the controller's word to whoever shows it. Pure."""

from datetime import datetime
from typing import NamedTuple

from agent.desired import HandsOff
from agent.events import Cause
from agent.status import Outage, Phase
from reconcilers.actual import Attached
from reconcilers.errors import DiskError
from reconcilers.holders import DeviceHolders
from reconcilers.plan import Keep, Nothing, Refuse
from reconcilers.reason import Reason

_PHASE_OF_NOTHING = {
    Reason.AS_DESIRED: Phase.UP,
    Reason.NO_MEDIUM: Phase.UP,
    Reason.TAKEN_DOWN: Phase.DOWN,
    Reason.OPTIONAL_MISSING: Phase.DOWN,
}


class Report(NamedTuple):
    """The outcome of the latest look at a disk. A tuple, as each look makes one and then another of it.

    Attributes:
        phase: Where the disk stands.
        reason: Why, in a word.
        message: Why, in a sentence.
        attached: What is there.
        cause: What made us look.
        duration_s: Seconds from that to this outcome.
        began: When the look began, on the monotonic clock.
        trace_id: What the same trigger set off elsewhere has the same.
        attempts: Failures in a row.
        next_retry: When it is tried again by itself; None if it waits for something to happen.
        holders: Who keeps the disk from going.
        outage: The last time that the disk could not be read and written.
        outage_is_news: It has begun or ended with this report.
    """

    phase: Phase
    reason: Reason
    message: str
    attached: Attached | None
    cause: Cause = Cause.TIMER
    duration_s: float = 0.0
    began: float = 0.0
    trace_id: str | None = None
    attempts: int = 0
    next_retry: datetime | None = None
    holders: DeviceHolders | None = None
    outage: Outage | None = None
    outage_is_news: bool = False


def of_rest(step: Nothing | Keep | Refuse, attached: Attached | None) -> Report:
    """The report of a disk with nothing to do."""
    match step:
        case Nothing(reason):
            return Report(phase=_PHASE_OF_NOTHING[reason], reason=reason, message=reason.meaning, attached=attached)
        case Keep(reason, message):
            phase = Phase.LOST if attached and not attached.serves else Phase.DEGRADED
            return Report(phase=phase, reason=reason, message=message, attached=attached)
        case Refuse(reason, message):
            return Report(phase=Phase.REFUSED, reason=reason, message=message, attached=attached)


def of_hands_off(why: HandsOff, attached: Attached | None) -> Report:
    """The report of a disk that is not to be touched."""
    phase = Phase.ORPHANED if why.reason is Reason.UNKNOWN_GUEST else Phase.REFUSED
    return Report(phase=phase, reason=why.reason, message=why.message, attached=attached)


def of_failure(error: DiskError, attached: Attached | None) -> Report:
    """The report of a disk whose step failed."""
    phase = _phase(error.reason, attached)
    return Report(phase=phase, reason=error.reason, message=error.message, attached=attached, holders=error.holders)


def _phase(reason: Reason, attached: Attached | None) -> Phase:
    if attached is not None and not attached.server_alive:
        return Phase.LOST
    if reason is Reason.DEVICE_IN_USE:
        return Phase.IN_USE
    if not reason.transient or reason is Reason.SOURCE_IN_USE:
        return Phase.REFUSED
    return Phase.FAILED
