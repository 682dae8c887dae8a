"""Steps that take their time: shown while they last, and no other disk waits for one that hangs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.controller import Controller
from agent.events import Cause
from agent.outages import Outages
from agent.report import Report
from agent.setting_sections import ControllerSettings
from agent.status import Phase
from reconcilers.look import Look
from reconcilers.plan import Step
from reconcilers.reason import Reason
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format
from tests.bench.simulated_host import SimulatedHost

SLOW, QUICK = DiskKey("vm1", "vda"), DiskKey("vm1", "vdb")


class SlowHost(SimulatedHost):
    """A host on which one disk's steps wait at a gate: to attach is a step of the look, to replace one besides."""

    def __init__(self, runtime: Path) -> None:
        super().__init__(runtime)
        self.gate = asyncio.Event()

    async def look(self, key: DiskKey, desired: DiskSpec | None, *, begin: Callable[[Step], None]) -> Look:
        def begun(step: Step) -> None:
            begin(step)
            steps.append(step)

        steps = list[Step]()
        look = await super().look(key, desired, begin=begun)
        if steps and key == SLOW:
            await self.gate.wait()
        return look

    async def apply(self, step: Step, key: DiskKey) -> str | None:
        if key == SLOW:
            await self.gate.wait()
        return await super().apply(step, key)


class Disks:
    """Two disks that should have an image, and what is reported of them."""

    def __init__(self, folder: Path, step_timeout: float) -> None:
        self.host = SlowHost(folder)
        self.image = "/images/a.img"
        self.reports: list[tuple[DiskKey, Report]] = []
        self.controller = Controller(
            self.host,
            desired=lambda key: DiskSpec(key=key, source=self.image, backend=Backend.LOOP, format=Format.RAW),
            report=lambda key, report: self.reports.append((key, report)),
            pace=ControllerSettings(workers=1, step_timeout=step_timeout, retry_min=60, retry_max=60),
            outages=Outages(folder / "outages"),
        )

    def phases(self, key: DiskKey) -> list[Phase]:
        return [report.phase for one, report in self.reports if one == key]

    def last(self, key: DiskKey) -> Report:
        return next(report for one, report in reversed(self.reports) if one == key)

    async def until(self, phase: Phase, of: DiskKey = SLOW) -> None:
        async with asyncio.timeout(60):
            while self.phases(of)[-1:] != [phase]:  # noqa: ASYNC110 - what is waited for is reported
                await asyncio.sleep(0.005)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("agent.at_work.SLOW_SECONDS", 0.02)
    return tmp_path


@asynccontextmanager
async def working(disks: Disks) -> AsyncIterator[None]:
    task = asyncio.create_task(disks.controller.run())
    yield
    disks.controller.stop()
    await task


async def test_a_step_that_takes_long_is_shown_once_and_then_what_came_of_it(folder: Path) -> None:
    disks = Disks(folder, step_timeout=600)
    async with working(disks):
        for image in ("/images/a.img", "/images/b.img"):
            disks.image = image
            disks.host.gate.clear()
            disks.reports.clear()
            disks.controller.enqueue([SLOW], Cause.DOCUMENT)
            await disks.until(Phase.ATTACHING)
            disks.host.gate.set()
            await disks.until(Phase.UP)
            assert disks.phases(SLOW) == [Phase.ATTACHING, Phase.UP]


async def test_a_step_that_hangs_is_told_of_and_holds_up_no_other(folder: Path) -> None:
    disks = Disks(folder, step_timeout=0.1)
    async with working(disks):
        disks.controller.enqueue([SLOW, QUICK], Cause.DOCUMENT)
        await disks.until(Phase.FAILED)
        assert disks.last(SLOW).reason is Reason.TIMED_OUT
        await disks.until(Phase.UP, of=QUICK)
        disks.host.gate.set()
        await disks.until(Phase.UP)


async def test_a_report_that_cannot_be_told_is_of_its_disk_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = Disks(folder, step_timeout=60)

    def report(key: DiskKey, report: Report) -> None:
        if key == SLOW and report.reason is not Reason.INTERNAL_ERROR:
            raise ValueError("a word that no JSON can hold")
        disks.reports.append((key, report))

    monkeypatch.setattr(disks.controller, "_report", report)
    disks.host.gate.set()
    async with working(disks):
        disks.controller.enqueue([SLOW, QUICK], Cause.DOCUMENT)
        await disks.until(Phase.FAILED)
        await disks.until(Phase.UP, QUICK)
    assert "log" in disks.last(SLOW).message
