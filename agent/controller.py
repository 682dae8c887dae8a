"""The loop that brings what is to what should be, one disk at a time and many disks at once.

Level-triggered: a trigger only enqueues a disk's key. The work then reads desired and actual anew, so a trigger too
many costs a look and a trigger lost is made up for by the slow resync.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol, TypeGuard

import structlog

from agent.desired import Desired, Gone, HandsOff
from agent.events import Cause
from agent.outages import Outages
from agent.report import Report, of_failure, of_hands_off, of_rest
from agent.setting_sections import ControllerSettings
from agent.status import Phase, now
from agent.trace import new_trace
from reconcilers.actual import Actual, Attached, FileId, Source
from reconcilers.errors import DiskError
from reconcilers.holders import DeviceHolders
from reconcilers.look import Look
from reconcilers.plan import Detach, Keep, Nothing, Refuse, Replace, Step
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey, DiskSpec

log: structlog.stdlib.BoundLogger = structlog.get_logger()

STEPS_MAX = 6
"""Replacing takes three steps; more than this means that something works against us."""

SLOW_SECONDS = 0.5
"""A step that takes longer is shown while it lasts."""

SLACK_SECONDS = 10.0
"""How much longer than a step may take a waiting disk may go unnoticed before the agent counts as stuck."""

_dice = random.SystemRandom()


class DiskHost(Protocol):
    """What the controller needs of a host (`reconcilers.host.Host`)."""

    async def observe(self, key: DiskKey, source_path: str | None) -> Actual:
        """What the disk and its source really are."""

    async def look(self, key: DiskKey, desired: DiskSpec | None, *, begin: Callable[[Step], None]) -> Look:
        """What the disk really is and what comes next; what can be done at once is done, after a call of `begin`."""

    async def attached(self, key: DiskKey) -> Attached | None:
        """What of the disk is there."""

    async def tell_of_release(self, key: DiskKey, device_path: str, holders: DeviceHolders | None) -> None:
        """Report a change when one of the holders lets go of the device, or has by now."""

    def tell_of_writer(self, key: DiskKey) -> None:
        """Report a change when somebody has written the disk's source."""

    async def apply(self, step: Step, key: DiskKey) -> str | None:
        """Carry out a step; returns a warning or None."""


@dataclass(frozen=True, slots=True)
class _Trigger:
    cause: Cause
    at: float
    trace_id: str


@dataclass(frozen=True, slots=True)
class _Stuck:
    """A disk that should leave one image for another, which somebody else has."""

    wants: FileId
    has: FileId


@dataclass(slots=True)
class _Work:
    """What is being done about one disk.

    Attributes:
        until: When it counts as hanging, on the monotonic clock, which is the event loop's.
        step: The step that was begun and has not ended, and the disk before it.
        since: When the step was begun.
        timer: Looks whether it takes long.
    """

    key: DiskKey
    trigger: _Trigger
    slots: asyncio.Semaphore
    until: float
    step: Step | None = None
    attached: Attached | None = None
    since: float = 0.0
    timer: asyncio.TimerHandle | None = None


class Controller:
    """Works on every disk that is enqueued until it is as desired, and reports each outcome."""

    def __init__(
        self,
        host: DiskHost,
        *,
        desired: Callable[[DiskKey], Desired],
        report: Callable[[DiskKey, Report], None],
        pace: ControllerSettings,
        outages: Outages,
    ) -> None:
        """Args as they are; `report` is called in the event loop and must not block."""
        self._host = host
        self._desired = desired
        self._report = report
        self._pace = pace
        self._outages = outages
        self._waiting: dict[DiskKey, _Trigger] = {}
        self._again: dict[DiskKey, _Trigger] = {}
        self._busy: set[DiskKey] = set()
        self._hanging: set[DiskKey] = set()
        self._stuck: dict[DiskKey, _Stuck] = {}
        self._attempts: dict[DiskKey, int] = {}
        self._warnings: dict[DiskKey, str] = {}
        self._retries: dict[DiskKey, asyncio.TimerHandle] = {}
        self._last_begin = 0.0
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._stopping = False

    def enqueue(self, keys: Iterable[DiskKey], cause: Cause, trace_id: str | None = None) -> None:
        """Have disks looked at. Those that are waiting already are looked at once, those at work once more."""
        trigger = _Trigger(cause, time.monotonic(), trace_id or new_trace())
        for key in keys:
            queue = self._again if key in self._busy else self._waiting
            queue.setdefault(key, trigger)
            if cause is Cause.DOCUMENT:
                self._attempts.pop(key, None)
            self._settled.clear()
        self._wake.set()

    async def settled(self, within: float) -> bool:
        """Wait until no disk is waiting or at work. False if that takes longer than so many seconds: one hangs."""
        try:
            async with asyncio.timeout(within):
                await self._settled.wait()
        except TimeoutError:
            return False
        return True

    @property
    def queued(self) -> int:
        """How many disks wait to be looked at."""
        return len(self._waiting) + len(self._again)

    @property
    def working(self) -> int:
        """How many disks are being worked on."""
        return len(self._busy)

    @property
    def progresses(self) -> bool:
        """Whether waiting disks are taken up. A slot comes free after `step_timeout` at the latest, so they must be."""
        if not self._waiting:
            return True
        since = max(self._last_begin, next(iter(self._waiting.values())).at)
        return time.monotonic() - since < self._pace.step_timeout + SLACK_SECONDS

    def stop(self) -> None:
        """Begin nothing new; `run` returns when what is under way is done."""
        self._stopping = True
        for retry in self._retries.values():
            retry.cancel()
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`. Cancel to leave at once: every step can be cut short and taken up by the next agent."""
        slots = asyncio.Semaphore(self._pace.workers)
        async with asyncio.TaskGroup() as tasks:
            while await self._something_to_do():
                await slots.acquire()
                key, trigger = next(iter(self._waiting.items()))
                del self._waiting[key]
                self._busy.add(key)
                self._last_begin = time.monotonic()
                tasks.create_task(self._work(key, trigger, slots))

    async def _something_to_do(self) -> bool:
        while not self._waiting and not self._stopping:
            self._wake.clear()
            await self._wake.wait()
        return not self._stopping

    async def _work(self, key: DiskKey, trigger: _Trigger, slots: asyncio.Semaphore) -> None:
        """Work on one disk. One that hangs gives its slot to others, but stays busy: its step may yet take effect."""
        if retry := self._retries.pop(key, None):
            retry.cancel()
        now = time.monotonic()
        work = _Work(key, trigger, slots, until=now + self._pace.step_timeout)
        self._watch(work, now)
        try:
            await self._reconcile(work)
        finally:
            if work.timer:
                work.timer.cancel()
            if key in self._hanging:
                self._hanging.discard(key)
            else:
                slots.release()
            self._busy.discard(key)
            if again := self._again.pop(key, None):
                self._waiting[key] = again
                self._wake.set()
            if not (self._waiting or self._busy):
                self._settled.set()

    def _watch(self, work: _Work, now: float) -> None:
        """Look again when the step that is under way will have taken long. One timer does for all of a disk's steps."""
        at = min(work.until, (work.since if work.step else now) + SLOW_SECONDS)
        work.timer = asyncio.get_running_loop().call_at(at, self._look_after, work)

    def _look_after(self, work: _Work) -> None:
        """Show a step that takes long; let others work when one seems to hang."""
        now = time.monotonic()
        if now >= work.until:
            self._give_way(work)
            return
        if work.step and now - work.since >= SLOW_SECONDS:
            self._show(work, work.step)
            work.step = None
        self._watch(work, now)

    def _show(self, work: _Work, step: Step) -> None:
        phase = Phase.DETACHING if isinstance(step, Detach) else Phase.ATTACHING
        words = f"{_name(step)} is under way"
        under_way = Report(phase=phase, reason=Reason.PROGRESSING, message=words, attached=work.attached)
        self._report(work.key, replace(under_way, outage=self._outages.of(work.key)))

    def _give_way(self, work: _Work) -> None:
        self._hanging.add(work.key)
        report = _hanging(self._pace.step_timeout, work.trigger)
        self._report(work.key, replace(report, outage=self._outages.of(work.key)))
        work.slots.release()

    async def _reconcile(self, work: _Work) -> None:
        key, trigger, began = work.key, work.trigger, time.monotonic()
        with structlog.contextvars.bound_contextvars(guest=key.guest, target=key.target, step="observe"):
            try:
                report = await self._converge(work)
            except DiskError as error:
                report = of_failure(error, await self._attached(key))
            except OSError as error:  # what nobody foresaw is mostly a host that lacks something: room, descriptors
                log.warning("the host refused", exc_info=True)
                failure = DiskError(Reason.KERNEL_ERROR, f"{error} (errno {error.errno})")
                report = of_failure(failure, await self._attached(key))
            except Exception as error:
                log.exception("a defect in the agent; the disk stays as it is")
                failure = DiskError(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
                report = of_failure(failure, await self._attached(key))
            if report.reason is Reason.DEVICE_IN_USE and report.attached and report.attached.device_path:
                await self._host.tell_of_release(key, report.attached.device_path, report.holders)
            if report.phase is Phase.REFUSED and not report.reason.transient:
                self._host.tell_of_writer(key)
            took = time.monotonic() - trigger.at
            report = replace(report, cause=trigger.cause, duration_s=took, began=began, trace_id=trigger.trace_id)
            report = self._outages.told_in(report, key)
            self._report(key, self._scheduled(key, report))
            if report.outage_is_news:
                await self._outages.keep(key)

    async def _converge(self, work: _Work) -> Report:
        key = work.key
        for _ in range(STEPS_MAX):
            desired = self._desired(key)
            if isinstance(desired, HandsOff):
                return of_hands_off(desired, await self._attached(key))
            spec = None if isinstance(desired, Gone) else desired
            look = await self._look(work, spec)
            actual, step = look.actual, look.step
            before = replace(actual, attached=None) if look.done else actual
            self._outages.look(key, before, wanted=spec is not None)
            if isinstance(step, Nothing | Keep | Refuse):
                self._stuck.pop(key, None)
                return self._with_warning(key, of_rest(step, actual.attached))
            try:
                await self._apply(step, work, actual.attached)
            except DiskError as error:
                if error.reason is not Reason.SOURCE_IN_USE or not self._goes_round(step, key, actual):
                    raise
                await self._apply(Detach(step.attached), work, actual.attached)
            self._stuck.pop(key, None)
        message = f"{STEPS_MAX} steps did not bring {key} to rest; something else changes it all the time"
        raise DiskError(Reason.KERNEL_ERROR, message)

    def _goes_round(self, step: Step, key: DiskKey, actual: Actual) -> TypeGuard[Replace]:
        """Whether a disk waits for an image that another has, which waits in turn for that of the first.

        Disks that change places would all wait for ever, as none gives its image up before it has the other. When
        each is known to want to leave its own, one of them can go first.
        """
        if not isinstance(step, Replace) or not isinstance(actual.source, Source):
            return False
        self._stuck[key] = _Stuck(wants=actual.source.identity, has=step.attached.identity)
        leaving = {stuck.has: stuck.wants for stuck in self._stuck.values()}
        wanted: FileId | None = actual.source.identity
        for _ in self._stuck:
            wanted = leaving.get(wanted) if wanted else None
            if wanted == step.attached.identity:
                return True
        return False

    async def _look(self, work: _Work, spec: DiskSpec | None) -> Look:
        with self._under_way(work) as begin:
            look = await self._host.look(work.key, spec, begin=begin)
        if look.done:
            self._note_done(work.key, look.done, look.warning)
        return look

    async def _apply(self, step: Step, work: _Work, attached: Attached | None) -> None:
        with self._under_way(work, attached) as begin:
            begin(step)
            warning = await self._host.apply(step, work.key)
        self._note_done(work.key, step, warning)

    @contextmanager
    def _under_way(self, work: _Work, attached: Attached | None = None) -> Iterator[Callable[[Step], None]]:
        """Have a step that is begun shown while it lasts, if it lasts long."""

        def begin(step: Step) -> None:
            work.since, work.attached, work.step = time.monotonic(), attached, step

        try:
            yield begin
        finally:
            work.step = None

    def _note_done(self, key: DiskKey, step: Step, warning: str | None) -> None:
        self._warnings.pop(key, None)
        if warning:
            log.warning(warning, step=_name(step))
            self._warnings[key] = warning
        log.info("done", step=_name(step), why=getattr(step, "why", None))

    async def _attached(self, key: DiskKey) -> Attached | None:
        try:
            return await self._host.attached(key)
        except (OSError, DiskError):  # no descriptors left, for example: that must not end the work on other disks
            log.exception("it can't be told what is attached")
            return None

    def _with_warning(self, key: DiskKey, report: Report) -> Report:
        """An image that looks like another format than declared is up all the same, and says so."""
        if report.phase is Phase.UP and (warning := self._warnings.get(key)):
            return replace(report, reason=Reason.FORMAT_MISMATCH, message=warning)
        return report

    def _scheduled(self, key: DiskKey, report: Report) -> Report:
        """Arrange the next try of a disk that is not as desired: soon and backing off if time can mend it."""
        if report.phase in {Phase.UP, Phase.DOWN, Phase.ORPHANED}:
            self._attempts.pop(key, None)
            return report
        attempts = self._attempts[key] = self._attempts.get(key, 0) + 1
        if report.reason.transient:
            longest = min(self._pace.retry_max, self._pace.retry_min * 2 ** min(attempts - 1, 32))
            pause = _dice.uniform(0, longest)
        else:
            pause = _dice.uniform(self._pace.retry_max / 2, self._pace.retry_max)
        if not self._stopping:
            loop = asyncio.get_running_loop()
            self._retries[key] = loop.call_later(pause, self.enqueue, [key], Cause.RETRY, report.trace_id)
        log.info("not as desired", reason=report.reason, message=report.message, next_try_seconds=round(pause, 1))
        return replace(report, attempts=attempts, next_retry=now() + timedelta(seconds=pause))


def _name(step: Step) -> str:
    return type(step).__name__.lower()


def _hanging(seconds: float, trigger: _Trigger) -> Report:
    return Report(
        phase=Phase.FAILED,
        reason=Reason.TIMED_OUT,
        message=f"a step has not returned for {seconds:g} s; the storage under the image may hang. It goes on when "
        "that answers, and other disks are not held up",
        attached=None,
        cause=trigger.cause,
        duration_s=seconds,
        trace_id=trigger.trace_id,
        attempts=1,
    )
