"""Documents come in: read, judged, parsed, made durable, in that order and on the store's own thread.

What has been seen before is recognised by its digest and costs no parsing and no write.
"""

import itertools
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from agent.bus.message import Message
from agent.bus.topics import DesiredTopic, Scope, Topics
from agent.definition import DocumentRejected, Finding, GuestDefinition, Limits, parse_domain
from agent.desired import GuestInForce
from agent.document import DesiredDocument, read_document
from agent.events import DocumentVerdict, EventType
from agent.rejection import Rejection
from agent.status import now
from agent.store import Store, Verdict
from agent.trust.policy import Trust
from reconcilers.reason import Reason

NOT_KEPT = {Reason.TOO_MANY_GUESTS, Reason.INVALID_NAME}
"""Rejections of guests that can't be here, of which anybody could make up any number."""

_EVENT_OF_REASON = {
    Reason.STALE_GENERATION: EventType.GUEST_STALE,
    Reason.GENERATION_CONFLICT: EventType.GUEST_CONFLICT,
}


@dataclass(frozen=True, slots=True)
class Accepted:
    """A document is durable and in force."""

    guest: GuestInForce

    @property
    def name(self) -> str:
        """The guest's name."""
        return self.guest.document.guest

    @property
    def scope(self) -> Scope:
        """Where it stands."""
        return self.guest.document.scope


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """A document changed nothing; why is on record."""

    rejection: Rejection
    generation: int | None = None

    @property
    def name(self) -> str:
        """The guest's name, as the topic has it."""
        return self.rejection.guest

    @property
    def scope(self) -> Scope:
        """Where it came on."""
        return self.rejection.scope


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A topic was emptied."""

    name: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class Unchanged:
    """What is on record came again: whatever was turned away since is off the bus."""

    name: str
    scope: Scope


News = Accepted | TurnedAway | Withdrawn
Outcome = News | Unchanged


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A document that reads well and is worth storing."""

    document: DesiredDocument
    definition: GuestDefinition | None


class Intake:
    """Takes batches of messages in. All methods block, and belong to the thread that opened the store."""

    def __init__(self, store: Store, topics: Topics, limits: Limits, *, guests_max: int, trust: Trust) -> None:
        """Args as they are; `guests_max` bounds what anybody who can publish may have a host remember."""
        self._store = store
        self.trust = trust
        self._guests_max = guests_max
        self._topics = topics
        self.limits = limits

    def load(self) -> list[Outcome]:
        """What was taken in before this start, in an order in which it can be taken in again.

        Raises:
            StoreError: The store can't be read.
        """
        outcomes: list[Outcome] = []
        for stored in self._store.load():
            guest = self._in_force(stored.document)
            outcomes.append(Accepted(guest))
            if stored.withdrawn:
                outcomes.append(Withdrawn(stored.document.guest, stored.document.scope))
        return [*outcomes, *(TurnedAway(rejection) for rejection in self._store.rejections())]

    def take(self, messages: Sequence[Message], outcomes: list[Outcome]) -> None:
        """Take in messages from desired topics, in order, after trust statements.

        Args:
            messages: As they came.
            outcomes: Each is added here as soon as it is durable, also where what comes after it is not: when the
                messages come again it is no news to the store.

        Raises:
            StoreError: The store can't be written; the messages count as not received.
        """
        seen: set[str] = set()
        signed: set[str] = set()
        read = list[_Candidate | TurnedAway | Withdrawn | Unchanged]()
        for message in self._documents(messages):
            one = self._read(message, signed, alone=message.topic not in seen)
            read.append(one)
            seen.add(message.topic)
            if isinstance(one, _Candidate) and one.document.signers:
                signed.add(one.document.guest)
        for kind, run in itertools.groupby(read, key=type):
            items = list(run)
            if kind is _Candidate:
                outcomes += self._accept([item for item in items if isinstance(item, _Candidate)])
            elif kind is TurnedAway:
                away = [item for item in items if isinstance(item, TurnedAway)]
                self._store.reject([item.rejection for item in away if item.rejection.reason not in NOT_KEPT])
                outcomes += away
            elif kind is Unchanged:
                outcomes += [item for item in items if isinstance(item, Unchanged)]
            else:
                gone = [item for item in items if isinstance(item, Withdrawn)]
                self._store.withdraw([(item.scope, item.name) for item in gone])
                outcomes += gone

    def _documents(self, messages: Sequence[Message]) -> Iterator[Message]:
        """The messages that are not about trust, once those that are have been followed."""
        for message in messages:
            if message.topic == self._topics.trust:
                self._follow(message.payload)
        yield from (message for message in messages if message.topic != self._topics.trust)

    def _follow(self, statements: bytes) -> None:
        """Go on to the keys that the statements lead to, durably before they count."""
        trust = self.trust.followed(statements, max_bytes=self.limits.max_bytes)
        if trust.record is not None and trust.record != self.trust.record:
            self._store.keep_trust(trust.record)
        self.trust = trust

    def _read(
        self, message: Message, signed: AbstractSet[str], *, alone: bool
    ) -> _Candidate | TurnedAway | Withdrawn | Unchanged:
        """Read one message.

        Args:
            message: As it came.
            signed: Guests with a signed document before it that is not on record yet.
            alone: It is the first of its topic, so that the record can judge it already.
        """
        topic = self._topics.parse(message.topic)
        if not isinstance(topic, DesiredTopic):
            raise TypeError(f"{message.topic} is no desired topic")
        if not message.payload:
            return Withdrawn(topic.guest, topic.scope)
        try:
            self._check_room(topic)
            document = read_document(
                message.payload,
                scope=topic.scope,
                guest=topic.guest,
                properties=message.properties,
                limits=self.limits,
                opener=self.trust,
            )
            if not document.signers:
                signed_before = topic.guest in signed or self._store.knows_signed(topic.guest)
                self.trust.admit_unsigned(signed_before=signed_before)
            verdict = self._store.judge(document) if alone else Verdict.ACCEPTED
            if verdict is Verdict.ACCEPTED:
                return _Candidate(document, self._parse(document))
        except DocumentRejected as error:
            rejection = Rejection.of(message.payload, error.findings, scope=topic.scope, guest=topic.guest)
            return TurnedAway(rejection)
        return Unchanged(topic.guest, topic.scope) if verdict is Verdict.UNCHANGED else _Candidate(document, None)

    def _check_room(self, topic: DesiredTopic) -> None:
        if not self._store.knows(topic.scope, topic.guest) and len(self._store) >= self._guests_max:
            message = (
                f"{self._guests_max} documents are on record, which is the limit (limits.guests); raise it, or take "
                "guests off this host that are no more"
            )
            raise DocumentRejected(Finding(Reason.TOO_MANY_GUESTS, message, "", None))

    def _accept(self, candidates: Sequence[_Candidate]) -> Iterator[Outcome]:
        verdicts = self._store.accept([candidate.document for candidate in candidates])
        for candidate, verdict in zip(candidates, verdicts, strict=True):
            match verdict:
                case Verdict.ACCEPTED:
                    guest = GuestInForce(document=candidate.document, definition=candidate.definition)
                    yield Accepted(guest)
                case Verdict.STALE | Verdict.CONFLICT:
                    yield _overruled(candidate.document, verdict)
                case Verdict.UNCHANGED:
                    yield Unchanged(candidate.document.guest, candidate.document.scope)

    def _in_force(self, document: DesiredDocument) -> GuestInForce:
        try:
            return GuestInForce(document=document, definition=self._parse(document))
        except DocumentRejected as error:
            return GuestInForce(document=document, definition=None, unreadable=error.findings)

    def _parse(self, document: DesiredDocument) -> GuestDefinition | None:
        if document.state == "absent":
            return None
        return parse_domain(document.body, name=document.guest, limits=self.limits)


def _overruled(document: DesiredDocument, verdict: Verdict) -> TurnedAway:
    if verdict is Verdict.STALE:
        reason = Reason.STALE_GENERATION
        message = f"generation {document.generation} is below the one on record; push again with a higher one"
    else:
        reason = Reason.GENERATION_CONFLICT
        message = (
            f"generation {document.generation} is on record with other content, so somebody else pushed at the same "
            "time; compare the two and push the right one with a higher generation"
        )
    rejection = Rejection(
        scope=document.scope,
        guest=document.guest,
        sha256=document.sha256,
        reason=reason,
        message=message,
        findings=(Finding(reason, message, "/generation", None),),
        at=now(),
    )
    return TurnedAway(rejection, document.generation)


def verdict_event(outcome: News, trace_id: str | None = None) -> tuple[EventType, DocumentVerdict]:
    """The event that tells of an outcome."""
    match outcome:
        case Accepted(GuestInForce(document=document)):
            return EventType.GUEST_ACCEPTED, DocumentVerdict.of(
                document.scope,
                document.guest,
                Reason.ACCEPTED,
                Reason.ACCEPTED.meaning,
                generation=document.generation,
                sha256=document.sha256,
                trace_id=trace_id,
            )
        case Withdrawn(guest, scope):
            return EventType.GUEST_WITHDRAWN, DocumentVerdict.of(
                scope, guest, Reason.WITHDRAWN, Reason.WITHDRAWN.meaning, trace_id=trace_id
            )
        case TurnedAway(rejection, generation):
            return _EVENT_OF_REASON.get(rejection.reason, EventType.GUEST_REJECTED), DocumentVerdict.of(
                rejection.scope,
                rejection.guest,
                rejection.reason,
                rejection.message,
                generation=generation,
                sha256=rejection.sha256,
                findings=rejection.findings,
                trace_id=trace_id,
            )
