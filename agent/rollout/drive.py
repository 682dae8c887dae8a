"""Driving a rollout: what was decided is done, and what comes of it is seen. Effects only; `decision` decides.

Before a wave's documents are published, all that is needed to know them again stands on the bus, so a drive may end
anywhere, and another goes on: documents that are there are not published again, those that are not are. And before
anything is written, it is asked whether the seat is still ours; `seat` says what that is good for.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.bus.message import Message
from agent.bus.topics import DesiredTopic
from agent.document import digest
from agent.fleet.census import Census
from agent.fleet.delivery import Delivery, standing
from agent.fleet.follow import TICK_SECONDS, Follower
from agent.fleet.targets import Target
from agent.fleet.words import counted, names
from agent.rollout.decision import STOPS, Situation, Step, decide
from agent.rollout.prepare import Prepared, prepare, restoring
from agent.rollout.record import Phase, Record, RolloutState, RolloutWave, wave_message
from agent.rollout.seat import Seat
from agent.status import now
from agent.trust.seal import Seal

PART = 200
"""Documents that are published between two looks at the seat."""


@dataclass(slots=True)
class Tally:
    """How far it is, for those who watch.

    Attributes:
        restoring: It is being taken back, on all hosts at once.
        wave: The wave, counted from 1.
        hosts: How many hosts it has.
        done: How many have done it, and so on.
        done_before: Hosts of earlier waves that have done it.
    """

    restoring: bool = False
    wave: int = 0
    hosts: int = 0
    done: int = 0
    failed: int = 0
    waiting: int = 0
    done_before: int = 0
    failed_before: int = 0


@dataclass(slots=True)
class _Wave:
    """The wave that is under way."""

    number: int
    deliveries: list[Delivery] = field(default_factory=list)
    follower: Follower | None = None
    deadline: float = float("inf")


class Drive:
    """Drives one rollout from a seat.

    Attributes:
        failures: What became of hosts that have failed so far.
        show: Called whenever there is something new to show.

    Args:
        seat: A seat that was taken.
        record: What is kept of the rollout; goes on with it.
        census: Its guest on all hosts; kept up to date.
        limit: Bytes that a document may have.
        seal: Signs documents; None leaves them unsigned.
    """

    def __init__(self, seat: Seat, record: Record, census: Census, *, limit: int, seal: Seal | None) -> None:
        self._seat = seat
        self._op = seat.op
        self._record = record
        self._census = census
        self._limit = limit
        self._seal = seal
        self._loop = asyncio.get_running_loop()
        self._sent: defaultdict[str, set[str]] = defaultdict(set)
        self._overtaken: dict[str, str] = {}
        self._wave = _Wave(0)
        self._done_before = 0
        self._left = 0
        self._restoring = False
        self.failures: dict[str, Delivery] = {}
        self.show: Callable[[Tally], None] = lambda _: None

    async def roll(self) -> RolloutState:
        """Publish wave after wave until all is done or something speaks against it; returns where it stands then."""
        self._look_back()
        while True:
            match step := decide(self._situation()):
                case Step.PUBLISH:
                    await self._publish()
                case Step.WAIT:
                    await self._wait()
                case Step.NEXT:
                    self._close()
                    self._begin(self._wave.number + 1)
                    await self.stand(Phase.ROLLING, f"wave {self._wave.number} of {self._record.plan.waves} begins")
                case Step.FINISH:
                    self._close()
                    return await self.stand(Phase.DONE, self._finished())
                case _ if step in STOPS:
                    self._close()
                    return await self.stand(Phase.STOPPED, self._why(step))

    async def restore(self) -> RolloutState:
        """Bring back what every host was told before, at once, and see it done; returns where it stands then."""
        await self.stand(Phase.ROLLING_BACK, "the previous documents are being restored")
        self._restoring, self._done_before = True, 0
        self.failures.clear()
        deliveries, left_alone = restoring(self._record, self._census)
        self._overtaken.clear()
        self._wave = _Wave(self._wave.number, deliveries)
        for one in deliveries:
            self._sent[one.host or ""].add(one.sha256)
        await self._deliver()
        while self._wave.follower and self._wave.follower.open and not self._expired:
            await self._wait()
        self._close()
        self._done_before = 0
        failed = [one for one in deliveries if one.outcome != "done"]
        self.failures = {one.host or "": one for one in failed}
        words = [f"{len(deliveries) - len(failed)} of {counted(len(deliveries), 'host')} as before"]
        words += [f"{names([one.host or '' for one in failed])} not (yet)"] if failed else []
        words += [f"{host} left alone: {why}" for host, why in sorted(left_alone.items())]
        phase = Phase.ROLLING_BACK if failed else Phase.ROLLED_BACK
        return await self.stand(phase, "; ".join(words))

    async def stand(self, phase: Phase, message: str, *, wave: int | None = None) -> RolloutState:
        """Write down where it stands; at the wave that is under way unless another one is named."""
        before = self._record.state.wave if self._record.state else 1
        state = RolloutState(
            phase=phase,
            wave=wave or self._wave.number or before,
            message=message,
            operator=self._seat.me.operator,
            changed_at=now(),
        )
        await self._seat.look()
        self._seat.run.states.append(state)  # before: the broker may have it although we are never told
        await self._op.publish(self._op.topics.rollout(self._record.id, "state"), state.model_dump_json().encode())
        self._record.state = state
        return state

    def tally(self) -> Tally:
        """How far it is."""
        deliveries = self._wave.deliveries
        waiting, done = sum(not one.over for one in deliveries), sum(one.outcome == "done" for one in deliveries)
        return Tally(
            restoring=self._restoring,
            wave=self._wave.number,
            hosts=len(deliveries) or len(self._hosts()),
            done=done,
            failed=len(deliveries) - done - waiting,
            waiting=waiting,
            done_before=self._done_before,
            failed_before=len(self.failures),
        )

    @property
    def away(self) -> list[str]:
        """Hosts of this wave and those to come whose agents are not connected."""
        at = self._record.state.wave if self._record.state else 1
        hosts = (entry.host for number, wave in self._record.waves.items() if number >= at for entry in wave.hosts)
        return sorted(host for host in hosts if not Target(host, self._census.fleet.hosts.get(host)).online)

    @property
    def overtaken(self) -> bool:
        """Whether somebody else pushes to the same hosts."""
        return bool(self._overtaken)

    @property
    def _expired(self) -> bool:
        return self._loop.time() >= self._wave.deadline

    def _hosts(self) -> tuple[object, ...]:
        wave = self._record.waves.get(self._wave.number)
        return wave.hosts if wave else ()

    def _look_back(self) -> None:
        """Find out what became of the waves before the one that it stands at, which had their time."""
        at = self._record.state.wave if self._record.state else 1
        for number in range(1, at):
            wave, _, deliveries = self._prepared(self._record.waves[number])
            follower = Follower(self._census.fleet, deliveries, self._loop.time())
            self._wave = _Wave(number, deliveries, follower, deadline=self._loop.time())
            self._remember(wave, deliveries)
            self._close()
        self._begin(at)

    def _begin(self, number: int) -> None:
        self._wave = _Wave(number)
        self.show(self.tally())

    def _situation(self) -> Situation:
        plan, tally = self._record.plan, self.tally()
        return Situation(
            last=self._wave.number == plan.waves,
            canary=bool(plan.canary) and self._wave.number == 1,
            published=self._wave.follower is not None,
            expired=self._expired,
            waiting=tally.waiting,
            failed=tally.failed,
            failed_before=tally.failed_before,
            max_failed=plan.max_failed,
            overtaken=len(self._overtaken),
        )

    async def _publish(self) -> None:
        record, topics = self._record, self._op.topics
        wave, before, deliveries = self._prepared(record.waves[self._wave.number])
        if wave != record.waves[wave.number]:
            kept = [(topics.rollout(record.id, "before", key), one.payload) for key, one in before.items()]
            await self._op.publish_all(kept)
            await self._seat.look()
            await self._op.publish(*wave_message(record.id, wave, topics))
            record.waves[wave.number] = wave
            record.before |= before
        self._wave.deliveries = deliveries
        self._remember(wave, deliveries)
        await self._deliver()

    def _prepared(self, wave: RolloutWave) -> Prepared:
        return prepare(self._record.plan, wave, self._census, limit=self._limit, seal=self._seal)

    def _remember(self, wave: RolloutWave, deliveries: list[Delivery]) -> None:
        mine = {one.host for one in deliveries if not one.over}
        for entry in wave.hosts:
            if entry.sha256 and entry.host in mine:
                self._sent[entry.host].add(entry.sha256)

    async def _deliver(self) -> None:
        """Publish what is not on the bus yet, and begin to follow it."""
        topics, census = self._op.topics, self._census
        missing = [
            one
            for one in self._wave.deliveries
            if not one.over
            and ((there := census.own_message(one.host or "", one.guest)) is None or there.payload != one.payload)
        ]
        for start in range(0, len(missing), PART):
            part = missing[start : start + PART]
            await self._seat.look()
            await self._op.publish_all((one.topic(topics), one.payload) for one in part)
            for one in part:  # their echo may come late, and until then they would count as not published
                census.take(Message(one.topic(topics), one.payload))
        self._wave.follower = Follower(census.fleet, self._wave.deliveries, self._loop.time())
        self._wave.deadline = self._loop.time() + self._record.plan.timeout_s
        self.show(self.tally())

    async def _wait(self) -> None:
        """Take in what comes for a moment: deciding and showing look at every host, and a wave may have thousands."""
        wave = self._wave
        until = min(wave.deadline, self._loop.time() + TICK_SECONDS)
        while wave.follower and wave.follower.open and not self._overtaken:
            message = await self._op.message(max(0.0, until - self._loop.time()))
            if message is not None:
                await self._seat.check()
                self._heard(message)
            if self._loop.time() >= until:
                break
        if wave.follower:
            wave.follower.tick(self._loop.time())
        self.show(self.tally())

    def _heard(self, message: Message) -> None:
        if message.topic.startswith(f"{self._op.topics.prefix}/rollouts/"):
            return
        topic = self._op.topics.parse(message.topic)
        if not isinstance(topic, DesiredTopic):
            if self._wave.follower:
                self._wave.follower.take(message, self._loop.time())
            return
        self._census.take(message)
        sent = self._sent.get(topic.scope.name) if topic.scope.kind == "host" else None
        if sent and not self._restoring and digest(message.payload) not in sent:
            document = self._census.own(topic.scope.name, topic.guest)
            what = f"pushed generation {document.generation} of it" if document else "took its document off the bus"
            self._overtaken[topic.scope.name] = f"somebody else {what} meanwhile"

    def _close(self) -> None:
        """Settle the wave: who is silent or slow has failed if the time is up; else it is left to itself."""
        for one in self._wave.deliveries:
            if not one.over and (why := self._overtaken.get(one.host or "")):
                one.settle("overtaken", why)
            elif not one.over and self._expired:
                one.settle("timeout", standing(one, self._census.fleet))
            if one.outcome == "done":
                self._done_before += 1
            elif one.outcome != "published":
                self.failures[one.host or ""] = one
        self._left = sum(one.outcome == "published" for one in self._wave.deliveries)
        self.show(self.tally())
        self._wave.deliveries = []

    def _finished(self) -> str:
        failed = f", {names(sorted(self.failures))} failed" if self.failures else ""
        return f"{self._done_before} of {counted(self._record.plan.hosts, 'host')} done{failed}"

    def _why(self, step: Step) -> str:
        left = f"; {counted(self._left, 'host')} of the wave had not answered yet" if self._left else ""
        return f"{self._reason(step)}{left}"

    def _reason(self, step: Step) -> str:
        plan = self._record.plan
        failed = f"{names(sorted(self.failures))} failed"
        match step:
            case Step.STOP_OVERTAKEN:
                return "; ".join(f"{host}: {why}" for host, why in sorted(self._overtaken.items())[:3])
            case Step.STOP_CANARY:
                return f"in the canary {failed}, and none may"
            case _:
                return (
                    f"{failed}, {len(self.failures)} in all, and {plan.max_failed} of {counted(plan.hosts, 'host')} may"
                )
