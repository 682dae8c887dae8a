"""What happened, as CloudEvents 1.0 in structured JSON (https://github.com/cloudevents/spec, json-format).

A retained status says how things are; an event says that they changed, when, why and how long it took. Times are
RFC 3339 in UTC, durations seconds.
"""

import itertools
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, Self, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue
from pydantic_core import to_json

from agent.bus.topics import EventKind, Scope
from agent.definition import Finding
from agent.status import Condition, Outage, Phase, Status, now
from agent.trace import traceparent
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey

TraceId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""What one trigger set off, across guests, disks and hosts; a W3C trace id."""


class EventType(StrEnum):
    """What happened. The second word is the last level of the topic."""

    DISK_PHASE = "tapster.disk.phase"
    DISK_OUTAGE = "tapster.disk.outage"
    GUEST_PHASE = "tapster.guest.phase"
    GUEST_ACCEPTED = "tapster.guest.accepted"
    GUEST_REJECTED = "tapster.guest.rejected"
    GUEST_STALE = "tapster.guest.stale"
    GUEST_CONFLICT = "tapster.guest.conflict"
    GUEST_WITHDRAWN = "tapster.guest.withdrawn"
    HOST_STARTED = "tapster.host.started"
    HOST_SYNCED = "tapster.host.synced"
    HOST_STOPPING = "tapster.host.stopping"
    HOST_CONDITION = "tapster.host.condition"

    @property
    def kind(self) -> EventKind:
        """The topic's last level."""
        return cast("EventKind", self.split(".")[1])


class Cause(StrEnum):
    """The trigger that led to it."""

    START = "start"
    DOCUMENT = "document"
    KERNEL = "kernel"
    SERVER = "server"
    IMAGE = "image"
    TIMER = "timer"
    RETRY = "retry"
    COMMAND = "command"


class PhaseChange(Status):
    """A disk or a guest came from one phase into another.

    Attributes:
        guest: The guest.
        previous: The phase it left; None when it is seen for the first time.
        phase: The phase it is in.
        reason: Why, in a word.
        message: Why, in a sentence.
        cause: The trigger.
        duration_s: Seconds from the trigger to the change.
        trace_id: What the trigger set off.
    """

    guest: str
    previous: Phase | None
    phase: Phase
    reason: Reason
    message: str
    cause: Cause
    duration_s: Annotated[float, Field(ge=0)] | None
    trace_id: TraceId | None = None


class DiskPhaseChange(PhaseChange):
    """Data of `tapster.disk.phase`; the target names the disk, the path its device while it has one."""

    target: str
    device_path: str | None


class DiskOutage(Outage):
    """Data of `tapster.disk.outage`, told when it begins and when it ends, or once if it was over when it was noticed.

    Attributes:
        duration_s: From its beginning to its end; None while it lasts.
    """

    guest: str
    target: str
    duration_s: Annotated[float, Field(ge=0)] | None

    @classmethod
    def of(cls, key: DiskKey, outage: Outage) -> Self:
        """The outage of one disk."""
        duration = (outage.ended - outage.began).total_seconds() if outage.ended else None
        return cls(**dict(outage), guest=key.guest, target=key.target, duration_s=duration)


class FindingData(Status):
    """One thing that is wrong with a document, and where."""

    reason: Reason
    message: str
    path: str
    line: int | None

    @classmethod
    def of(cls, finding: Finding) -> Self:
        """The finding as it goes on the bus."""
        return cls(reason=finding.reason, message=finding.message, path=finding.path, line=finding.line)


class DocumentVerdict(Status):
    """Data of `tapster.guest.accepted`, `.rejected`, `.stale`, `.conflict` and `.withdrawn`.

    Attributes:
        guest: The guest that the topic names.
        scope: `host` or `group`.
        scope_name: The host's or the group's name.
        generation: The document's; None when it has none or could not be read.
        sha256: Hex digest of the payload; None for withdrawn, which has none.
        reason: Why, in a word.
        message: Why, in a sentence.
        findings: All that is wrong with a rejected document.
        trace_id: What the document set off.
    """

    guest: str
    scope: Literal["host", "group"]
    scope_name: str
    generation: int | None
    sha256: str | None
    reason: Reason
    message: str
    findings: tuple[FindingData, ...] = ()
    trace_id: TraceId | None = None

    @classmethod
    def of(
        cls,
        scope: Scope,
        guest: str,
        reason: Reason,
        message: str,
        *,
        generation: int | None = None,
        sha256: str | None = None,
        findings: tuple[Finding, ...] = (),
        trace_id: str | None = None,
    ) -> Self:
        """The verdict in the agent's own terms."""
        return cls(
            guest=guest,
            scope=scope.kind,
            scope_name=scope.name,
            generation=generation,
            sha256=sha256,
            reason=reason,
            message=message,
            findings=tuple(FindingData.of(finding) for finding in findings),
            trace_id=trace_id,
        )


class HostChange(Status):
    """Data of `tapster.host.started`, `.synced`, `.stopping` and, with the condition, `.condition`."""

    message: str
    condition: Condition | None = None
    duration_s: Annotated[float, Field(ge=0)] | None = None


DATA: dict[EventType, type[Status]] = {
    EventType.DISK_PHASE: DiskPhaseChange,
    EventType.DISK_OUTAGE: DiskOutage,
    EventType.GUEST_PHASE: PhaseChange,
    EventType.GUEST_ACCEPTED: DocumentVerdict,
    EventType.GUEST_REJECTED: DocumentVerdict,
    EventType.GUEST_STALE: DocumentVerdict,
    EventType.GUEST_CONFLICT: DocumentVerdict,
    EventType.GUEST_WITHDRAWN: DocumentVerdict,
    EventType.HOST_STARTED: HostChange,
    EventType.HOST_SYNCED: HostChange,
    EventType.HOST_STOPPING: HostChange,
    EventType.HOST_CONDITION: HostChange,
}
"""The shape of every event's data."""


class CloudEvent(BaseModel):
    """The envelope, for those who write events and for those who read them. Extension attributes are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    specversion: Literal["1.0"] = "1.0"
    id: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]
    type: str
    subject: str
    time: AwareDatetime
    datacontenttype: Literal["application/json"] = "application/json"
    data: dict[str, JsonValue]


class Event(NamedTuple):
    """An event ready to publish: the last level of its topic, and the payload."""

    kind: EventKind
    payload: bytes


class EventSource:
    """Numbers one session's events. Source and id together are unique for ever, as the specification wants.

    Args:
        host: The host's name.
        fleet: The fleet's name.
        session: What tells this run of the agent from every other one.
    """

    def __init__(self, *, host: str, fleet: str, session: str) -> None:
        self._source = f"/tapster/{fleet}/{host}"
        self._session = session
        self._sequence = itertools.count(1)

    def event(
        self,
        type: EventType,  # noqa: A002
        subject: str,
        data: BaseModel | dict[str, JsonValue],
        trace_id: str | None = None,
    ) -> Event:
        """Make the next event.

        Args:
            type: What happened.
            subject: What it happened to: `<guest>/<target>`, `<guest>` or the host's name.
            data: The particulars.
            trace_id: Of what set it off; told as `traceparent`, CloudEvents' extension for distributed tracing.
        """
        envelope = {
            "specversion": "1.0",
            "id": f"{self._session}-{next(self._sequence)}",
            "source": self._source,
            "type": type,
            "subject": subject,
            "time": now(),
            "datacontenttype": "application/json",
            **({"traceparent": traceparent(trace_id)} if trace_id else {}),
            "data": data,
        }
        return Event(type.kind, to_json(envelope))
