"""One run of the agent: puts the pieces together, starts them in order, and takes them down in reverse.

Order of start: store, host, everything that is ours on the host, controller, bus. The disks are being brought up from
the store before the broker is even asked, so its absence holds up nothing.
"""

import asyncio
import random
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

import structlog

import agent
from agent.bus.session import BusSession, Message
from agent.bus.topics import DesiredTopic, Scope, Topics
from agent.commands import Commands
from agent.controller import SLACK_SECONDS, Controller
from agent.definition import Limits
from agent.desired import DesiredWorld
from agent.events import Cause, EventSource, EventType, HostChange
from agent.host import abilities_of, host_of
from agent.intake import NOT_KEPT, Accepted, Intake, News, Outcome, TurnedAway, Unchanged, Withdrawn, verdict_event
from agent.notify import Notifier
from agent.outages import Outages
from agent.reporter import Reporter
from agent.settings import Settings
from agent.status import AgentState, Capabilities, ConditionType, now
from agent.store import Store
from agent.store_file import StoreError
from agent.trace import trace_of
from agent.trust.policy import Trust
from reconcilers.abilities import HostAbilities
from reconcilers.blktap.abilities import starter_for
from reconcilers.errors import DiskError
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey
from reconcilers.trigger import Trigger

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger()

DRAIN_SECONDS = 5.0
"""How long steps under way may still take when the agent stops; what is cut short is taken up at the next start."""

MANAGER_SECONDS = 10.0
"""How often the service manager is told how things are, or three times as often as its watchdog wants."""

TRUST_SECONDS = 10.0
"""How often it is looked whether the signers' last word is still good."""

LEARN_SECONDS = 60.0
"""How long it may take to find out what the host can do; it takes a tenth of a second."""

_dice = random.SystemRandom()


async def run(settings: Settings, stop: asyncio.Event) -> bool:
    """Be the agent until `stop` is set. Every disk stays up afterwards.

    Returns:
        Whether all steps under way came to their end; False if one hangs.

    Raises:
        StoreError: The store can't be opened.
        DiskError: Another agent has the runtime folder.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="store") as store_thread:
        loop = asyncio.get_running_loop()
        store = await loop.run_in_executor(store_thread, Store.open, settings.paths.state / "store.sqlite")
        try:
            daemon = await Daemon.prepare(settings, store, store_thread)
            return await daemon.run(stop)
        finally:
            await loop.run_in_executor(store_thread, store.close)


class Daemon:
    """The running agent."""

    def __init__(
        self, settings: Settings, abilities: HostAbilities, intake: Intake, store_thread: ThreadPoolExecutor
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._store_thread = store_thread
        self._session = secrets.token_hex(8)
        self._abilities = abilities
        self._learning = asyncio.Lock()
        self._topics = Topics(settings.fleet, settings.host)
        self._world = DesiredWorld(host=settings.host, groups=settings.groups, partial=settings.policy.partial)
        self._host = host_of(settings, abilities, on_change=self._changed)
        self._reporter = Reporter(
            topics=self._topics,
            world=self._world,
            events=EventSource(host=settings.host, fleet=settings.fleet, session=self._session),
            capabilities=_capabilities(abilities),
            stable_path=self._host.paths.name,
        )
        self._outages = Outages(settings.paths.runtime / "outages")
        self._controller = Controller(
            self._host,
            desired=self._world.desired,
            report=self._reporter.report,
            pace=settings.controller,
            outages=self._outages,
        )
        self._bus = BusSession(
            broker=settings.broker,
            topics=self._topics,
            groups=settings.groups,
            birth=self._birth,
            on_documents=self._take,
            on_command=Commands(
                topics=self._topics,
                host=self._host,
                reporter=self._reporter,
                limits=intake.limits,
                resync=self.resync,
            ).answer,
            on_synced=self._synced,
            spool=settings.paths.state / "events.jsonl",
        )
        self._reporter.connect(self._bus)
        self._trust_told: dict[ConditionType, tuple[Reason | None, str] | None] = {}

    @classmethod
    async def prepare(cls, settings: Settings, store: Store, store_thread: ThreadPoolExecutor) -> "Daemon":
        """Find out what the host can do and what it knows already, and make the agent for it."""
        limits = Limits(
            max_bytes=settings.limits.document_bytes,
            max_disks=settings.limits.disks_per_guest,
            max_depth=settings.limits.xml_depth,
            max_layers=settings.limits.backing_layers,
        )
        topics = Topics(settings.fleet, settings.host)
        loop = asyncio.get_running_loop()
        trust = Trust.begin(settings.trust, settings.fleet, await loop.run_in_executor(store_thread, store.trust))
        intake = Intake(store, topics, limits, guests_max=settings.limits.guests, trust=trust)
        known, abilities = await asyncio.gather(
            loop.run_in_executor(store_thread, intake.load),
            abilities_of(settings, starter_for(settings.paths.runtime)),
        )
        for backend, why in abilities.missing.items():
            log.warning("a backend is not available", backend=backend, why=why)
        if abilities.taps.jail_lacks and not abilities.taps.missing:
            log.warning("servers run in a jail that lacks pieces", lacking=abilities.taps.jail_lacks)
        daemon = cls(settings, abilities, intake, store_thread)
        for outcome in known:
            daemon._change_world(outcome)
        return daemon

    async def run(self, stop: asyncio.Event) -> bool:
        """Work until `stop` is set; see the function `run`."""
        with self._host.owned_runtime(), self._host.watch.watching():
            await self._bus.load()
            await asyncio.to_thread(self._outages.load)
            await self.resync(Cause.START)
            log.info("started", host=self._settings.host, fleet=self._settings.fleet, disks=len(self._world.all_keys()))
            self._reporter.tell(
                EventType.HOST_STARTED, self._settings.host, HostChange(message="the agent has started")
            )
            async with asyncio.TaskGroup() as tasks:
                work = tasks.create_task(self._controller.run())
                bus = tasks.create_task(self._bus.run())
                endless = (
                    self._resync_for_ever(),
                    self._tell_manager(),
                    self._host.watch.stalls(),
                    self._watch_trust(),
                    *self._metrics(),
                )
                others = [tasks.create_task(each) for each in endless]
                await stop.wait()
                for other in others:
                    other.cancel()
                ended = await self._leave(work, bus)
            await self._host.close()
        log.info("stopped; every disk stays as it is")
        return ended

    def _metrics(self) -> list[Coroutine[None, None, NoReturn]]:
        if self._settings.metrics.listen is None:
            return []
        from agent.metrics.scrape import Metrics  # noqa: PLC0415 - only who wants metrics waits for their library

        metrics = Metrics(
            self._settings.metrics.listen, reporter=self._reporter, controller=self._controller, bus=self._bus
        )
        return [metrics.run()]

    def _changed(self, key: DiskKey, trigger: Trigger) -> None:
        self._controller.enqueue([key], Cause(trigger.value))

    async def _leave(self, work: asyncio.Task[None], bus: asyncio.Task[None]) -> bool:
        self._controller.stop()
        ended, _ = await asyncio.wait({work}, timeout=DRAIN_SECONDS)
        work.cancel()
        self._reporter.tell(EventType.HOST_STOPPING, self._settings.host, HostChange(message="the agent stops"))
        bus.cancel()
        return work in ended

    async def resync(self, cause: Cause) -> None:
        """Find everything that is ours and look at every disk anew, and at what the host lacked: that may be there."""
        if cause is Cause.COMMAND or (cause is Cause.TIMER and self._abilities.missing):
            await self._learn()
        found, orphans = await self._host.survey(self._world.all_keys())
        for orphan in orphans:
            log.warning("a device of ours belongs to no known disk", device=orphan.device_path, label=orphan.label)
        keys: dict[str, set[DiskKey]] = {guest: set() for guest in self._world.names()}
        for key in found | self._world.all_keys():
            keys.setdefault(key.guest, set()).add(key)
        for guest, its in keys.items():
            self._reporter.expect(guest, its)
        self._controller.enqueue(sorted(chain.from_iterable(keys.values())), cause)
        if cause is not Cause.TIMER:  # what each look finds is shown anyway
            self._reporter.show_all()

    async def _learn(self) -> None:
        """Go by what the host can do by now, if that is more: one that is short of descriptors seems to lack all."""
        try:
            async with self._learning, asyncio.timeout(LEARN_SECONDS):
                abilities = await abilities_of(self._settings, self._abilities.taps.starter)
        except (OSError, DiskError):
            log.exception("it can't be told what the host can do now; what it could before counts")
            return
        if abilities.exceeds(self._abilities):
            self._abilities = abilities
            self._host.learn(abilities)
            capabilities = _capabilities(abilities)
            log.info("the host can do more than before", **capabilities.model_dump(mode="json"))
            self._reporter.learn(capabilities)
            await self._bus.announce()

    async def _resync_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_dice.uniform(0.5, 1.5) * self._settings.controller.resync)
            try:
                await self.resync(Cause.TIMER)
            except (OSError, DiskError):
                log.exception("the host could not be looked over; it is tried again")

    async def _tell_manager(self) -> None:
        """Say READY once every disk was looked at (or one hangs), then give signs of life as long as work goes on."""
        notifier = Notifier()
        await self._controller.settled(self._settings.controller.step_timeout + SLACK_SECONDS)
        notifier.ready()
        pause = min(MANAGER_SECONDS, notifier.watchdog_seconds / 3 or MANAGER_SECONDS)
        while True:
            if self._controller.progresses:
                notifier.alive()
            notifier.status(self._reporter.sentence())
            await asyncio.sleep(pause)

    async def _watch_trust(self) -> None:
        """Tell when the signers have not been heard of for too long."""
        while True:
            self._show_trust()
            await asyncio.sleep(TRUST_SECONDS)

    def _show_trust(self) -> None:
        trust = self._intake.trust
        if not trust.used:
            return
        answers = {ConditionType.TRUSTED: trust.standing(), ConditionType.FRESH: trust.freshness(now())}
        told, self._trust_told = self._trust_told, answers
        for kind, answer in answers.items():
            if answer is not None and answer != told.get(kind):
                reason, message = answer
                (log.warning if reason else log.info)("trust", condition=kind, reason=reason, message=message)
                self._reporter.host_condition(kind, reason, message)
        if answers != told:
            self._reporter.show_host()

    async def _take(self, messages: Sequence[Message]) -> None:
        """Take documents in, to the end also where the connection to the broker is lost meanwhile.

        The store's thread goes on in any case, and what it has put on record is no news when it comes again.
        """
        keyring = self._intake.trust.keyring
        taking = asyncio.ensure_future(self._take_in(messages))
        try:
            await asyncio.shield(taking)
        finally:
            await asyncio.wait((taking,))
        if self._intake.trust.keyring != keyring:
            await self._bus.resync()  # documents that came before their keys are judged anew

    async def _take_in(self, messages: Sequence[Message]) -> None:
        outcomes: list[Outcome] = []
        try:
            await self._in_store_thread(lambda: self._intake.take(messages, outcomes))
        except StoreError as error:
            self._reporter.host_condition(ConditionType.STORED, Reason.STORE_FAILED, str(error))
            self._reporter.show_host()
            raise
        else:
            self._reporter.host_condition(ConditionType.STORED, None, "documents are durable before they count")
        finally:
            traces = self._traces(messages)
            for outcome in self._put(outcomes, traces):
                self._tell(outcome, traces[outcome.scope, outcome.name])
            self._show_trust()

    def _traces(self, messages: Sequence[Message]) -> dict[tuple[Scope, str], str]:
        """The trace that each document belongs to; of two on one topic, the last one's."""
        topics = ((self._topics.parse(message.topic), message.properties) for message in messages)
        return {
            (topic.scope, topic.guest): trace_of(properties)
            for topic, properties in topics
            if isinstance(topic, DesiredTopic)
        }

    def _put(self, outcomes: Iterable[Outcome], traces: Mapping[tuple[Scope, str], str]) -> list[News]:
        """Make outcomes part of the desired world and have their disks looked at. Returns those that are news."""
        judged = [(outcome, self._put_one(outcome, traces.get((outcome.scope, outcome.name)))) for outcome in outcomes]
        return [outcome for outcome, news in judged if news and not isinstance(outcome, Unchanged)]

    def _put_one(self, outcome: Outcome, trace_id: str | None) -> bool:
        if isinstance(outcome, TurnedAway) and outcome.rejection.reason in NOT_KEPT:
            return True
        before = self._world.keys(outcome.name)
        news = self._change_world(outcome)
        if isinstance(outcome, Withdrawn):
            self._reporter.drop_finished(outcome.name)
        if news:
            keys = before | self._world.keys(outcome.name) | self._reporter.keys(outcome.name)
            self._reporter.expect(outcome.name, keys)
            self._controller.enqueue(sorted(keys), Cause.DOCUMENT, trace_id)
            self._reporter.refresh(outcome.name)
        return news

    def _change_world(self, outcome: Outcome) -> bool:
        """Whether anything else is in force now."""
        match outcome:
            case Accepted(guest):
                return self._world.put(guest)
            case TurnedAway(rejection):
                return self._world.reject(rejection)
            case Unchanged(name, scope):
                return self._world.settle(name, scope)
            case Withdrawn(name, scope):
                return self._world.withdraw(name, scope)

    def _tell(self, outcome: News, trace_id: str) -> None:
        kind, verdict = verdict_event(outcome, trace_id)
        log.info("document", guest=verdict.guest, verdict=kind, reason=verdict.reason, message=verdict.message)
        self._reporter.tell(kind, verdict.guest, verdict, trace_id)

    async def _synced(self) -> None:
        self._reporter.synced(self._bus.last_sync)
        self._reporter.host_condition(ConditionType.SYNCED, None, "everything retained on the bus has arrived")
        self._reporter.show_all()
        self._reporter.tell(EventType.HOST_SYNCED, self._settings.host, HostChange(message="in step with the bus"))

    def _birth(self, state: Literal["online", "offline", "lost"]) -> bytes:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        birth = AgentState(
            state=state,
            session=self._session,
            boot_id=boot_id,
            version=agent.__version__,
            labels=self._settings.labels,
            groups=self._settings.groups,
            capabilities=_capabilities(self._abilities),
        )
        return birth.model_dump_json().encode()

    async def _in_store_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._store_thread, work)


def _capabilities(abilities: HostAbilities) -> Capabilities:
    return Capabilities(
        backends=abilities.backends,
        formats=tuple(sorted(abilities.formats)),
        servers={kind: server.version for kind, server in abilities.taps.servers.items()},
        devices=abilities.taps.devices,
        jail_lacks=abilities.taps.jail_lacks,
        kernel=abilities.kernel,
    )
