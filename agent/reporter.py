"""Shows what is: keeps the latest report of every disk, and turns changes into guest status and events."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from agent.bus.topics import Topics
from agent.desired import DesiredWorld
from agent.document import DesiredDocument
from agent.events import Cause, DiskOutage, DiskPhaseChange, EventSource, EventType, HostChange, PhaseChange
from agent.guest_status import WORST_FIRST, Shown, condition, guest_status
from agent.report import Report
from agent.status import Capabilities, Condition, ConditionType, GuestStatus, HostStatus, Phase, Status, now
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey

FLUSH_SECONDS = 1.0
"""A guest of which more is about to be known is shown this much later, so that one message tells of all its disks."""

FLUSH_SECONDS_A_GUEST = 0.005
"""So much later again for each guest that waits already: of many that come at once, most are up by then."""

FLUSH_SECONDS_MAX = 5.0

HOST_SECONDS = 1.0
"""The host's status is shown this much after a change."""

_UNDER_WAY = {Phase.PENDING, Phase.ATTACHING, Phase.DETACHING}


class Tally(Protocol):
    """Whoever counts reports."""

    def count(self, before: Report | None, report: Report) -> None:
        """Take note of a report and of the one before it on the same disk."""


class Publisher(Protocol):
    """What the reporter needs of a bus session."""

    @property
    def trouble(self) -> str | None:
        """What is wrong between agent and broker."""

    @property
    def dropped_events(self) -> int:
        """Events that were dropped because the broker was away for too long."""

    def publish_retained(self, topic: str, payload: bytes) -> None:
        """Latest wins; never blocks."""

    def publish_event(self, topic: str, payload: bytes) -> None:
        """In order; never blocks."""


@dataclass(slots=True)
class _Unseen:
    """A document under which some disks have not been looked at yet; `since` is on the monotonic clock."""

    document: DesiredDocument
    since: float
    keys: set[DiskKey]


class Reporter:
    """The latest word on every disk and guest."""

    def __init__(
        self,
        *,
        topics: Topics,
        world: DesiredWorld,
        events: EventSource,
        capabilities: Capabilities,
        stable_path: Callable[[DiskKey], str],
    ) -> None:
        """Nothing is published until `connect`."""
        self._topics = topics
        self._world = world
        self._events = events
        self._capabilities = capabilities
        self._stable_path = stable_path
        self._bus: Publisher | None = None
        self.tally: Tally | None = None
        self._disks: dict[str, dict[str, Shown]] = {}
        self._guests: dict[str, GuestStatus] = {}
        self._told: set[str] = set()
        self._observed: dict[str, DesiredDocument] = {}
        self._unseen: dict[str, _Unseen] = {}
        self._host_conditions: dict[ConditionType, Condition] = {}
        self._last_sync: datetime | None = None
        self._flushes: dict[str, asyncio.Handle] = {}
        self._host_flush: asyncio.TimerHandle | None = None
        self._host_told: HostStatus | None = None

    def connect(self, bus: Publisher) -> None:
        """Publish through this session from now on."""
        self._bus = bus

    def report(self, key: DiskKey, report: Report) -> None:
        """Take the controller's word on a disk; tell of it if it is news."""
        self._note_seen(key, report)
        disks = self._disks.setdefault(key.guest, {})
        before = disks.get(key.target)
        if self.tally is not None:
            self.tally.count(before.report if before else None, report)
        changed = before is None or _news(before.report, report)
        disks[key.target] = Shown(report, now() if before is None or changed else before.since)
        if changed:
            self._tell_of_disk(key, before.report.phase if before else None, report)
        if report.outage and report.outage_is_news:
            self.tell(EventType.DISK_OUTAGE, str(key), DiskOutage.of(key, report.outage))
        if report.phase is Phase.DOWN:
            self._forget_if_over(key)
        self.refresh(key.guest)

    def expect(self, guest: str, keys: set[DiskKey]) -> None:
        """The document in force for a guest is observed once all these disks were looked at under it."""
        in_force = self._world.guest(guest)
        if in_force is None or in_force.document is self._observed.get(guest):
            return
        self._unseen[guest] = _Unseen(in_force.document, time.monotonic(), set(keys))
        self._note_if_observed(guest)

    def refresh(self, guest: str) -> None:
        """Publish the guest's status soon, if it has changed; one message for all that happens until then."""
        loop = asyncio.get_running_loop()
        if not self._is_unsettled(guest):
            if later := self._flushes.get(guest):
                later.cancel()  # it was for disks that have been looked at since
            self._flushes[guest] = loop.call_soon(self._publish_guest, guest)
        elif guest not in self._flushes:
            delay = min(FLUSH_SECONDS + FLUSH_SECONDS_A_GUEST * len(self._flushes), FLUSH_SECONDS_MAX)
            self._flushes[guest] = loop.call_later(delay, self._publish_guest, guest)
        self._refresh_host()

    def _refresh_host(self) -> None:
        if self._host_flush is None:
            self._host_flush = asyncio.get_running_loop().call_later(HOST_SECONDS, self._publish_host)

    def _is_unsettled(self, guest: str) -> bool:
        """Whether more is about to be known: disks are under way, or not looked at yet under the document in force."""
        if guest in self._unseen:
            return True
        shown = self._disks.get(guest, {})
        under_way = any(one.report.phase in _UNDER_WAY for one in shown.values())
        return under_way or any(disk.target and disk.target not in shown for disk in self._world.disks(guest))

    def show_all(self) -> None:
        """Publish everything anew, for a broker that may have forgotten it, and that what is over is over."""
        self._told.clear()
        self._host_told = None
        for guest in self._world.on_record() | self._disks.keys():
            self.refresh(guest)
        self._refresh_host()  # also of a host without guests

    def reports(self) -> dict[DiskKey, Report]:
        """The latest report of every disk."""
        return {
            DiskKey(guest, target): shown.report
            for guest, disks in self._disks.items()
            for target, shown in disks.items()
        }

    @property
    def guests(self) -> int:
        """How many guests the host knows of."""
        return len(self._world.names() | self._disks.keys())

    def keys(self, guest: str) -> set[DiskKey]:
        """The guest's disks that were ever reported and not forgotten."""
        return {DiskKey(guest, target) for target in self._disks.get(guest, {})}

    def present(self, guest: str) -> set[DiskKey]:
        """The guest's disks that have something on this host."""
        shown = self._disks.get(guest, {})
        return {DiskKey(guest, target) for target, one in shown.items() if one.report.attached}

    def drop_finished(self, guest: str) -> None:
        """Stop showing the guest's disks that are down for good."""
        for key in self.keys(guest):
            if self._disks[guest][key.target].report.phase is Phase.DOWN:
                self._forget_if_over(key)

    def synced(self, at: datetime | None) -> None:
        """The retained snapshot has arrived."""
        self._last_sync = at

    def host_condition(self, kind: ConditionType, reason: Reason | None, message: str) -> None:
        """Note something about the host as a whole, and tell of it if it is news; no reason means that all is well."""
        before = self._host_conditions.get(kind)
        after = condition(kind, reason is None, reason or Reason.AS_DESIRED, message, before=before)
        self._host_conditions[kind] = after
        if after.reason is not (before.reason if before else Reason.AS_DESIRED):
            change = HostChange(message=message, condition=after)
            self.tell(EventType.HOST_CONDITION, self._topics.host, change)

    def guest_status(self, guest: str) -> GuestStatus:
        """The status of one guest as it would be published now."""
        unseen = self._unseen.get(guest)
        return guest_status(
            guest,
            self._world,
            self._disks.get(guest, {}),
            unseen=[key.target for key in unseen.keys] if unseen else (),
            observed=self._observed.get(guest),
            before=self._guests.get(guest),
            host=self._topics.host,
            stable_path=self._stable_path,
        )

    def all_statuses(self) -> list[GuestStatus]:
        """The statuses of all guests, by name."""
        return [self.guest_status(guest) for guest in sorted(self._world.names() | self._disks.keys())]

    def host_status(self) -> HostStatus:
        """The host at a glance."""
        if self._bus and self._bus.trouble:
            self.host_condition(ConditionType.SYNCED, Reason.BUS_TROUBLE, self._bus.trouble)
        phases = Counter(shown.report.phase for disks in self._disks.values() for shown in disks.values())
        return HostStatus(
            host=self._topics.host,
            disks_by_phase=dict(phases),
            guests=self.guests,
            capabilities=self._capabilities,
            last_sync=self._last_sync,
            events_dropped=self._bus.dropped_events if self._bus else 0,
            conditions=tuple(self._host_conditions.values()),
        )

    def _note_seen(self, key: DiskKey, report: Report) -> None:
        unseen = self._unseen.get(key.guest)
        if unseen is not None and report.began >= unseen.since:
            unseen.keys.discard(key)
            self._note_if_observed(key.guest)

    def _note_if_observed(self, guest: str) -> None:
        if not self._unseen[guest].keys:
            self._observed[guest] = self._unseen.pop(guest).document

    def sentence(self) -> str:
        """The host in a sentence: guests, and disks by phase, the worst first."""
        phases = Counter(shown.report.phase for disks in self._disks.values() for shown in disks.values())
        counts = ", ".join(f"{phases[phase]} {phase}" for phase in WORST_FIRST if phases[phase])
        return f"{len(self._disks)} guests; disks: {counts or 'none'}"

    def _publish_guest(self, guest: str) -> None:
        self._flushes.pop(guest, None)
        if self._bus is None:
            return
        if self._is_over(guest):
            for kept in (self._guests, self._observed, self._unseen):
                kept.pop(guest, None)
            self._told.discard(guest)
            self._bus.publish_retained(self._topics.status(guest), b"")
            return
        before, status = self._guests.get(guest), self.guest_status(guest)
        self._guests[guest] = status
        if before is None or before.phase is not status.phase:
            self._tell_of_guest(before, status)
        if status != before or guest not in self._told:
            self._told.add(guest)
            self._bus.publish_retained(self._topics.status(guest), status.model_dump_json().encode())

    def _publish_host(self) -> None:
        self._host_flush = None
        self.show_host()

    def learn(self, capabilities: Capabilities) -> None:
        """Tell from now on that the host can do this."""
        self._capabilities = capabilities
        self.show_host()

    def show_host(self) -> None:
        """Publish the host's status now, if it has changed."""
        status = self.host_status()
        if self._bus is not None and status != self._host_told:
            self._host_told = status
            self._bus.publish_retained(self._topics.host_status, status.model_dump_json().encode())

    def _is_over(self, guest: str) -> bool:
        """An absent document was withdrawn, and nothing of the guest is left: there is nothing more to show."""
        in_force = self._world.guest(guest)
        if in_force is None:
            return not self._disks.get(guest) and self._world.rejection(guest) is None
        return in_force.withdrawn and in_force.document.state == "absent" and not self._disks.get(guest)

    def _forget_if_over(self, key: DiskKey) -> None:
        """A disk that is down stays in the status while the document that took it down is on the bus."""
        in_force = self._world.guest(key.guest)
        taken_down = in_force and in_force.document.state == "absent" and not in_force.withdrawn
        if not taken_down and key not in self._world.keys(key.guest):
            del self._disks[key.guest][key.target]

    def _tell_of_disk(self, key: DiskKey, previous: Phase | None, report: Report) -> None:
        data = DiskPhaseChange(
            guest=key.guest,
            target=key.target,
            previous=previous,
            phase=report.phase,
            reason=report.reason,
            message=report.message,
            cause=report.cause,
            duration_s=round(report.duration_s, 6),
            trace_id=report.trace_id,
            device_path=report.attached.node if report.attached else None,
        )
        self.tell(EventType.DISK_PHASE, str(key), data, report.trace_id)

    def _tell_of_guest(self, before: GuestStatus | None, status: GuestStatus) -> None:
        ready = status.conditions[-1]
        latest = max(
            (shown.report for shown in self._disks.get(status.guest, {}).values()),
            key=lambda report: report.began,
            default=None,
        )
        data = PhaseChange(
            guest=status.guest,
            previous=before.phase if before else None,
            phase=status.phase,
            reason=ready.reason,
            message=ready.message,
            cause=latest.cause if latest else Cause.DOCUMENT,
            duration_s=round(latest.duration_s, 6) if latest else None,
            trace_id=latest.trace_id if latest else None,
        )
        self.tell(EventType.GUEST_PHASE, status.guest, data, data.trace_id)

    def tell(self, kind: EventType, subject: str, data: Status, trace_id: str | None = None) -> None:
        """Publish an event."""
        if self._bus is not None:
            event = self._events.event(kind, subject, data, trace_id)
            self._bus.publish_event(self._topics.event(event.kind), event.payload)


def _news(before: Report, after: Report) -> bool:
    """Another phase, or another attachment in the same phase: a disk that was taken away and brought back."""
    if before.phase is not after.phase:
        return True
    return bool(before.attached and after.attached and before.attached.diskseq != after.attached.diskseq)
