"""Disks at work: what takes long is shown once, and what hangs gives way once and is left alone."""

import asyncio
import time

import pytest

from agent.at_work import AtWork, Occasion, Work
from agent.events import Cause
from reconcilers.plan import Nothing, Step
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey

STEP = Nothing(Reason.AS_DESIRED)
WAIT = 10.0


class Notes:
    """What was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.at_work = AtWork(show=self.show, give_way=self.give_way)

    def show(self, work: Work, step: Step) -> None:
        assert step is STEP
        self.told.append(("slow", work.key.target))

    def give_way(self, work: Work) -> None:
        self.told.append(("hangs", work.key.target))

    def add(self, target: str, seconds: float) -> Work:
        now = time.monotonic()
        work = Work(DiskKey("vm1", target), Occasion(Cause.DOCUMENT, now, "0" * 32), until=now + seconds, since=now)
        self.at_work.add(work)
        return work

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(WAIT):
            while len(self.told) < count:  # noqa: ASYNC110 - it waits for a timer's work
                await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.at_work.SLOW_SECONDS", 0.02)


async def test_each_slow_step_is_shown_once() -> None:
    notes = Notes()
    one, other = notes.add("vda", WAIT), notes.add("vdb", WAIT)
    one.begin(STEP)
    await notes.wait(1)
    other.begin(STEP)
    await notes.wait(2)
    one.begin(STEP)
    await notes.wait(3)
    assert notes.told == [("slow", "vda"), ("slow", "vdb"), ("slow", "vda")]
    notes.at_work.close()


async def test_what_hangs_is_not_shown_as_slow_any_more() -> None:
    notes = Notes()
    hung, other = notes.add("vda", 0.01), notes.add("vdb", WAIT)
    hung.begin(STEP)
    await notes.wait(1)
    other.begin(STEP)
    await notes.wait(2)
    other.begin(STEP)
    await notes.wait(3)
    assert notes.told == [("hangs", "vda"), ("slow", "vdb"), ("slow", "vdb")]
    assert hung.hangs
    notes.at_work.close()


async def test_nothing_is_told_of_what_has_ended() -> None:
    notes = Notes()
    ended, other = notes.add("vda", WAIT), notes.add("vdb", WAIT)
    for work in (ended, other):
        work.begin(STEP)
    notes.at_work.remove(ended)
    await notes.wait(1)
    assert notes.told == [("slow", "vdb")]
    assert DiskKey("vm1", "vda") not in notes.at_work
    notes.at_work.close()


async def test_others_are_looked_after_when_telling_of_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    monkeypatch.setattr(notes.at_work, "_give_way", lambda _: 1 / 0)
    notes.add("vda", 0.001)
    notes.add("vdb", WAIT).begin(STEP)
    await notes.wait(1)
    assert notes.told == [("slow", "vdb")]
    notes.at_work.close()
