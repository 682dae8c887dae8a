"""The loop that brings what is to what should be, one disk at a time and many disks at once.

Level-triggered: a trigger only enqueues a disk's key. The work then reads desired and actual anew, so a trigger too
many costs a look and a trigger lost is made up for by the slow resync.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol, TypeGuard

import structlog

from agent.at_work import AtWork, Occasion, Work
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
from reconcilers.plan import Detach, Keep, Nothing, Refuse, Replace, Resume, Step, is_held_too_long
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey, DiskSpec

log: structlog.stdlib.BoundLogger = structlog.get_logger()

STEPS_MAX = 6
"""Replacing takes three steps; more than this means that something works against us."""

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
class _Stuck:
    """A disk that should leave one image for another, which somebody else has."""

    wants: FileId
    has: FileId


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
        self._waiting: dict[DiskKey, Occasion] = {}
        self._again: dict[DiskKey, Occasion] = {}
        self._slots = asyncio.Semaphore(pace.workers)
        self._at_work = AtWork(show=self._show, give_way=self._give_way)
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
        occasion = Occasion(cause, time.monotonic(), trace_id or new_trace())
        for key in keys:
            queue = self._again if key in self._at_work else self._waiting
            queue.setdefault(key, occasion)
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
        return len(self._at_work)

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
        try:
            async with asyncio.TaskGroup() as tasks:
                while await self._something_to_do():
                    await self._slots.acquire()
                    tasks.create_task(self._work(self._next()))
        finally:
            self._at_work.close()

    def _next(self) -> Work:
        """Take up the disk that has waited longest."""
        key, occasion = next(iter(self._waiting.items()))
        del self._waiting[key]
        if retry := self._retries.pop(key, None):
            retry.cancel()
        self._last_begin = now = time.monotonic()
        work = Work(key, occasion, until=now + self._pace.step_timeout, since=now)
        self._at_work.add(work)
        return work

    async def _something_to_do(self) -> bool:
        while not self._waiting and not self._stopping:
            self._wake.clear()
            await self._wake.wait()
        return not self._stopping

    async def _work(self, work: Work) -> None:
        """Work on one disk. One that hangs gives its slot away and stays at work: its step may yet take effect."""
        try:
            await self._reconcile(work)
        finally:
            self._at_work.remove(work)
            if not work.hangs:
                self._slots.release()
            if again := self._again.pop(work.key, None):
                self._waiting[work.key] = again
                self._wake.set()
            if not (self._waiting or self._at_work):
                self._settled.set()

    def _show(self, work: Work, step: Step) -> None:
        phase = Phase.DETACHING if isinstance(step, Detach) else Phase.ATTACHING
        words = f"{_name(step)} is under way"
        outage = self._outages.of(work.key)
        report = Report(phase=phase, reason=Reason.PROGRESSING, message=words, attached=work.attached, outage=outage)
        self._report(work.key, report)

    def _give_way(self, work: Work) -> None:
        self._slots.release()
        report = _hanging(self._pace.step_timeout, work.occasion)
        self._report(work.key, report._replace(outage=self._outages.of(work.key)))

    async def _reconcile(self, work: Work) -> None:
        key, began = work.key, time.monotonic()
        # Of this task alone, so that nobody has to take them back.
        structlog.contextvars.bind_contextvars(guest=key.guest, target=key.target, step="observe")
        report = await self._outcome(work)
        if not await self._told(work, report._replace(began=began)):
            failure = DiskError(Reason.INTERNAL_ERROR, "how the disk is can't be told; the agent's log says why")
            await self._told(work, of_failure(failure, report.attached)._replace(began=began))

    async def _outcome(self, work: Work) -> Report:
        try:
            return await self._converge(work)
        except DiskError as error:
            failure = error
        except OSError as error:  # what nobody foresaw is mostly a host that lacks something: room, descriptors
            log.warning("the host refused", exc_info=True)
            failure = DiskError(Reason.KERNEL_ERROR, f"{error} (errno {error.errno})")
        except Exception as error:
            log.exception("a defect in the agent; the disk stays as it is")
            failure = DiskError(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")
        return of_failure(failure, await self._attached(work.key))

    async def _told(self, work: Work, report: Report) -> bool:
        """Whether a report could be told. What is wrong with one must not end the work on other disks."""
        key, occasion = work.key, work.occasion
        try:
            await self._listen_for_mending(key, report)
            took = time.monotonic() - occasion.at
            report = report._replace(cause=occasion.cause, duration_s=took, trace_id=occasion.trace_id)
            report = self._outages.told_in(report, key)
            self._report(key, self._scheduled(key, report))
            if report.outage_is_news:
                await self._outages.keep(key)
        except Exception:
            log.exception("a defect in the agent; the disk stays as it is")
            return False
        return True

    async def _listen_for_mending(self, key: DiskKey, report: Report) -> None:
        """Have the host tell when what keeps the disk from being as desired may be over."""
        if report.phase is Phase.REFUSED and not report.reason.transient:
            self._host.tell_of_writer(key)
        if report.reason is Reason.DEVICE_IN_USE and report.attached and report.attached.device_path:
            try:
                await self._host.tell_of_release(key, report.attached.device_path, report.holders)
            except OSError as error:  # no descriptors left, for example
                log.warning("it will not be told when the disk is let go, only seen later", why=str(error))

    async def _converge(self, work: Work) -> Report:
        key = work.key
        for _ in range(STEPS_MAX):
            desired = self._desired(key)
            if isinstance(desired, HandsOff):
                return of_hands_off(desired, await self._left_alone(work))
            spec = None if isinstance(desired, Gone) else desired
            look = await self._look(work, spec)
            actual, step = look.actual, look.step
            before = replace(actual, attached=None) if look.done else actual
            self._outages.look(key, before, wanted=spec is not None)
            match step:
                case Nothing() | Keep() | Refuse():
                    self._stuck.pop(key, None)
                    return self._with_warning(key, of_rest(step, actual.attached))
            await self._take(step, work, actual)
            self._stuck.pop(key, None)
        message = f"{STEPS_MAX} steps did not bring {key} to rest; something else changes it all the time"
        raise DiskError(Reason.KERNEL_ERROR, message)

    async def _left_alone(self, work: Work) -> Attached | None:
        """What is there of a disk that is not to be touched. It goes on all the same when its hold is over."""
        attached = await self._attached(work.key)
        if attached is None or not is_held_too_long(attached):
            return attached
        await self._apply(Resume(attached), work, attached)
        return await self._attached(work.key)

    async def _take(self, step: Step, work: Work, actual: Actual) -> None:
        try:
            await self._apply(step, work, actual.attached)
        except DiskError as error:
            if error.reason is not Reason.SOURCE_IN_USE or not self._goes_round(step, work.key, actual):
                raise
            await self._apply(Detach(step.attached), work, actual.attached)

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

    async def _look(self, work: Work, spec: DiskSpec | None) -> Look:
        try:
            look = await self._host.look(work.key, spec, begin=work.begin)
        finally:
            work.step = None
        if look.done:
            self._note_done(work.key, look.done, look.warning)
        return look

    async def _apply(self, step: Step, work: Work, attached: Attached | None) -> None:
        work.begin(step, attached)
        try:
            warning = await self._host.apply(step, work.key)
        finally:
            work.step = None
        self._note_done(work.key, step, warning)

    def _note_done(self, key: DiskKey, step: Step, warning: str | None) -> None:
        self._warnings.pop(key, None)
        if warning:
            log.warning(warning, step=_name(step))
            self._warnings[key] = warning
        log.info("done", step=_name(step), why=getattr(step, "why", None))

    async def _attached(self, key: DiskKey) -> Attached | None:
        try:
            return await self._host.attached(key)
        except Exception:  # no descriptors left, for example: that must not end the work on other disks
            log.exception("it can't be told what is attached")
            return None

    def _with_warning(self, key: DiskKey, report: Report) -> Report:
        """An image that looks like another format than declared is up all the same, and says so."""
        if report.phase is Phase.UP and (warning := self._warnings.get(key)):
            return report._replace(reason=Reason.FORMAT_MISMATCH, message=warning)
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
        if earlier := self._retries.pop(key, None):
            earlier.cancel()
        if not self._stopping:
            loop = asyncio.get_running_loop()
            self._retries[key] = loop.call_later(pause, self.enqueue, [key], Cause.RETRY, report.trace_id)
        log.info("not as desired", reason=report.reason, message=report.message, next_try_seconds=round(pause, 1))
        return report._replace(attempts=attempts, next_retry=now() + timedelta(seconds=pause))


def _name(step: Step) -> str:
    return type(step).__name__.lower()


def _hanging(seconds: float, occasion: Occasion) -> Report:
    return Report(
        phase=Phase.FAILED,
        reason=Reason.TIMED_OUT,
        message=f"a step has not returned for {seconds:g} s; the storage under the image may hang. It goes on when "
        "that answers, and other disks are not held up",
        attached=None,
        cause=occasion.cause,
        duration_s=seconds,
        trace_id=occasion.trace_id,
        attempts=1,
    )
