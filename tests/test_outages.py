"""From reports to a disk's last outage, as a table; and what is on record after a restart."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.outages import Outages, follow
from agent.report import Report
from agent.status import Outage, Phase
from reconcilers.actual import Actual
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey
from tests.reconcilers.test_plan import FILE, ON_AIO, ON_LOOP

KEY = DiskKey("vm1", "vda")
AT = datetime(2026, 1, 1, 12, tzinfo=UTC)
BEFORE = AT - timedelta(hours=1)

UP = Report(phase=Phase.UP, reason=Reason.AS_DESIRED, message="", attached=ON_AIO, duration_s=2)
LOST = UP._replace(
    phase=Phase.LOST, reason=Reason.DEVICE_IN_USE, attached=replace(ON_AIO, server_alive=False), message="held"
)
HUNG = UP._replace(
    phase=Phase.DEGRADED, reason=Reason.SERVER_HUNG, attached=replace(ON_AIO, server_answers=False), message="stop"
)
NOT_THERE = UP._replace(phase=Phase.REFUSED, reason=Reason.IMAGE_MISSING, attached=None)
DOWN = UP._replace(phase=Phase.DOWN, reason=Reason.TAKEN_DOWN, attached=None)

LASTING = Outage(began=BEFORE, ended=None, reason=Reason.SERVER_LOST, message="")
OVER = Outage(began=BEFORE, ended=BEFORE + timedelta(seconds=1), reason=Reason.SERVER_LOST, message="")

BEGAN = AT - timedelta(seconds=2)

# The last outage, what was seen before the steps, the report, and began, ended and reason of the outage then.
CASES: dict[str, tuple[Outage | None, Reason | None, Report, tuple[datetime, datetime | None, str] | None]] = {
    "all is well": (None, None, UP, None),
    "all is well since": (OVER, None, UP, (BEFORE, OVER.ended, "ServerLost")),
    "rebuilt at once": (None, Reason.SERVER_LOST, UP, (BEGAN, AT, "ServerLost")),
    "taken and made again": (OVER, Reason.DEVICE_VANISHED, UP, (BEGAN, AT, "DeviceVanished")),
    "lost under its user": (None, Reason.SERVER_LOST, LOST, (BEGAN, None, "ServerLost")),
    "still lost": (LASTING, Reason.SERVER_LOST, LOST, (BEFORE, None, "ServerLost")),
    "rebuilt when it was let go": (LASTING, Reason.SERVER_LOST, UP, (BEFORE, AT, "ServerLost")),
    "goes on": (LASTING, None, UP, (BEFORE, AT, "ServerLost")),
    "hung": (None, Reason.SERVER_HUNG, HUNG, (BEGAN, None, "ServerHung")),
    "vanished, and the image too": (None, Reason.DEVICE_VANISHED, NOT_THERE, (BEGAN, None, "DeviceVanished")),
    "never there": (None, None, NOT_THERE, None),
    "taken down while lost": (LASTING, Reason.SERVER_LOST, DOWN, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_table(case: str) -> None:
    before, interrupted, report, expected = CASES[case]
    outage = follow(before, interrupted, report, AT)
    assert (outage and (outage.began, outage.ended, outage.reason)) == expected


def test_a_clock_that_was_set_back_ends_no_outage_before_it_began() -> None:
    outage = follow(LASTING, None, UP, BEFORE - timedelta(days=1))
    assert outage
    assert outage.ended == outage.began


def test_only_a_wanted_disk_that_was_there_has_vanished(tmp_path: Path) -> None:
    def story() -> list[Outage | None]:
        outages, there, gone = Outages(tmp_path), Actual(FILE, ON_LOOP), Actual(FILE, None)
        told = []
        for actual, wanted in ((gone, True), (there, True), (gone, False), (there, True), (gone, True)):
            outages.look(KEY, actual, wanted=wanted)
            told.append(outages.told_in(UP, KEY).outage)
        return told

    *nothing, vanished = story()
    assert nothing == [None] * 4
    assert vanished
    assert vanished.reason is Reason.DEVICE_VANISHED


def test_an_outage_is_known_after_a_restart_and_forgotten_with_its_disk(tmp_path: Path) -> None:
    async def story() -> None:
        first = Outages(tmp_path)
        first.look(KEY, Actual(FILE, LOST.attached), wanted=True)
        told = first.told_in(LOST, KEY)
        assert told.outage_is_news
        await first.keep(KEY)
        (tmp_path / "cut-short.json").touch()
        second = Outages(tmp_path)
        second.load()
        assert second.of(KEY) == told.outage
        second.look(KEY, Actual(FILE, LOST.attached), wanted=True)
        assert not second.told_in(LOST, KEY).outage_is_news
        assert second.told_in(DOWN, KEY).outage is None
        await second.keep(KEY)

    asyncio.run(story())
    assert list(tmp_path.iterdir()) == []
