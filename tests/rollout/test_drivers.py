"""Who drives a rollout: two at once, Ctrl-C and resume, taking over, abort, a broker that goes away, and clocks."""

import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.bus.operator import operator
from agent.bus.topics import Topics
from agent.cli.rollout_view import print_history
from agent.rollout.claim import read_ledger
from agent.rollout.record import Record, RolloutDriver
from agent.settings import Settings
from agent.status import GuestStatus, now
from tests.broker import Broker
from tests.cli_operator.fake_host import Fake, Put, fake_fleet, up
from tests.cli_operator.test_targets import Tapster
from tests.rollout.conftest import definition
from tests.rollout.test_rollout import images, rollout, told
from tests.waiting import until

PATIENCE = 60.0


class Gate:
    """Hosts that answer only while it is open, and then about all that they were told."""

    def __init__(self) -> None:
        self.open = False

    def answer(self, document: Any, sha256: str) -> GuestStatus | None:
        return up(document, sha256) if self.open else None


def gated(count: int, gate: Gate, first: int = 1) -> dict[str, Fake]:
    """The first ones answer, the others when the gate is open."""
    return {f"h{number}": Fake(up if number <= first else gate.answer) for number in range(1, count + 1)}


class Driver:
    """`tapster rollout` in a process of its own."""

    def __init__(self, folder: Path, *words: str | Path) -> None:
        self.log = folder / f"driver-{random.randrange(10**9)}"
        command = [sys.executable, "-c", "from agent.cli.app import main; main()", "rollout", *map(str, words)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(folder / "tapster.toml")], stdout=log, stderr=log
            )

    def said(self, text: str) -> bool:
        return re.search(text, self.log.read_text()) is not None

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def driver(folder: Path, *words: str | Path) -> Iterator[Driver]:
    one = Driver(folder, *words)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()


def records(settings: Settings) -> list[Record]:
    async def look() -> list[Record]:
        async with operator(settings) as op:
            return list((await read_ledger(op)).records().values())

    return asyncio.run(look())


def the_only(settings: Settings) -> Record:
    (record,) = records(settings)
    return record


def test_ctrl_c_in_a_wave_and_another_process_goes_on(
    settings: Settings, tapster: Tapster, file: Path, tmp_path: Path
) -> None:
    gate = Gate()
    with fake_fleet(settings, gated(6, gate, first=2)):
        with driver(tmp_path, file, "--all", "--wave", "2") as first:
            until(lambda: first.said(r"wave 2/4 begins: 2 hosts"))
            until(lambda: len(told(settings)) == 3)
            assert first.end() == 1
            assert first.said("interrupted; nothing more is published")
        record = the_only(settings)
        assert not record.driven
        assert record.under_way
        assert images(settings).keys() == {"h1", "h2", "h3"}
        code, out, _ = tapster("rollout", "status", record.id)
        assert code == 1, "it is under way"
        assert "Driven by: nobody (resume it, or abort it)" in out
        generation = told(settings)["h2"]["generation"]
        gate.open = True
        with driver(tmp_path, "resume", record.id, "-o", "json") as second:
            until(lambda: len(told(settings)) == 3)
            with fake_fleet(settings, {"h3": Fake(up)}):  # it comes back and does what it was told meanwhile
                assert second.process.wait(PATIENCE) == 0
        assert set(images(settings).values()) == {"new"}
        assert told(settings)["h2"]["generation"] == generation, "what was published is not published again"


def test_a_driver_that_was_killed_leaves_the_seat(settings: Settings, file: Path, tmp_path: Path) -> None:
    with fake_fleet(settings, gated(3, Gate())), driver(tmp_path, file, "--all") as first:
        until(lambda: first.said("wave 2/3 begins"))
        assert the_only(settings).driven
        first.end(signal.SIGKILL)
        until(lambda: not the_only(settings).driven)
        assert the_only(settings).under_way


def test_the_second_of_two_is_told_and_publishes_nothing(
    settings: Settings, tapster: Tapster, file: Path, tmp_path: Path
) -> None:
    gate = Gate()
    other = definition(tmp_path, "other")
    with fake_fleet(settings, gated(4, gate)), driver(tmp_path, file, "--all") as first:
        until(lambda: first.said("wave 2/4 begins"))
        record = the_only(settings)
        code, out, err = tapster("rollout", other, "--all")
        assert (code, out) == (1, "")
        assert f"rollout {record.id} of guest 'vm1' by" in err
        assert "is under way on h1, h2, h3, h4, driven by" in err
        assert "nothing was published" in err
        assert [one.id for one in records(settings)] == [record.id]
        assert set(images(settings).values()) == {"new"}
        for command in ("resume", "undo"):
            assert "end that with Ctrl-C there, or say --take-over" in tapster("rollout", command, record.id)[2]
        first.end()
        assert (
            f"its driver is gone; nothing was published. Go on with it (`tapster rollout resume {record.id}`)"
            in (tapster("rollout", other, "--all")[2])
        )


@pytest.mark.parametrize("turn", range(4))
def test_of_two_that_begin_at_the_same_moment_at_most_one_goes_on(
    settings: Settings, tmp_path: Path, file: Path, tapster: Tapster, turn: int
) -> None:
    other = definition(tmp_path, "other")
    with fake_fleet(settings, {f"h{number}": Fake(up) for number in range(1, 4)}):
        with driver(tmp_path, file, "--all") as one, driver(tmp_path, other, "--all") as two:
            codes = [one.process.wait(PATIENCE), two.process.wait(PATIENCE)]
        found = images(settings)
        assert len(found) == 3
        if codes == [0, 0]:  # one after the other after all
            assert len(records(settings)) == 2
        else:
            assert sorted(codes) == [0, 1]
            assert set(found.values()) == ({"new"} if codes[0] == 0 else {"other"})
            assert (two if codes[0] == 0 else one).said("nothing was published")


def test_a_push_by_somebody_else_stops_it_and_is_not_pushed_over(
    settings: Settings, tapster: Tapster, file: Path, tmp_path: Path
) -> None:
    with fake_fleet(settings, gated(4, Gate())), driver(tmp_path, file, "--all", "--wave", "2", "--rollback") as first:
        until(lambda: first.said("wave 2/3 begins"))
        assert tapster("push", definition(tmp_path, "hotfix"), "--host", "h2")[0] == 0
        assert first.process.wait(PATIENCE) == 1
        assert first.said("h2: somebody else pushed generation 2 of it meanwhile")
        assert images(settings)["h2"] == "hotfix"
        assert "h4" not in images(settings)


def test_two_documents_of_one_generation_are_a_conflict_that_stops(
    settings: Settings, file: Path, tmp_path: Path, put: Put
) -> None:
    with fake_fleet(settings, gated(3, Gate())), driver(tmp_path, file, "--all") as first:
        until(lambda: first.said("wave 2/3 begins"))
        mine = told(settings)["h1"]
        put(Topics("lab", "h1").desired("vm1"), json.dumps({**mine, "domain_xml": "<domain/>"}).encode())
        assert first.process.wait(PATIENCE) == 1
        assert first.said("h1: somebody else pushed generation 1 of it meanwhile")


def test_taking_over_tells_who_drove(settings: Settings, tapster: Tapster, file: Path, tmp_path: Path) -> None:
    gate = Gate()
    with fake_fleet(settings, gated(3, gate)), driver(tmp_path, file, "--all") as first:
        until(lambda: first.said("wave 2/3 begins"))
        with driver(tmp_path, "resume", the_only(settings).id, "--take-over") as second:
            assert first.process.wait(PATIENCE) == 1
            assert first.said("drives it now, and nothing more is published from here")
            until(lambda: the_only(settings).driven)
            assert second.end() == 1
        assert not the_only(settings).driven


@pytest.mark.parametrize("rollback", [False, True])
def test_abort_ends_it_whoever_drives(
    settings: Settings, tapster: Tapster, file: Path, tmp_path: Path, *, rollback: bool
) -> None:
    with fake_fleet(settings, gated(4, Gate(), first=2)):
        assert tapster("push", definition(tmp_path, "old"), "--host", "h1", "--wait")[0] == 0
        with driver(tmp_path, file, "--all", "--timeout", "10s") as first:
            until(lambda: first.said("wave 3/4 begins"))
            until(lambda: len(told(settings)) == 3)
            words = ("--rollback",) if rollback else ()
            code, out, err = tapster("rollout", "abort", the_only(settings).id, *words)
            assert first.process.wait(PATIENCE) == 1
            assert first.said("drives it now")
        expected = (
            {"h1": "old", "h2": "absent", "h3": "absent"} if rollback else dict.fromkeys(("h1", "h2", "h3"), "new")
        )
        assert images(settings) == expected
        record = the_only(settings)
        assert record.state
        if rollback:  # h3 is silent still
            assert (code, record.state.phase) == (1, "rolling-back")
            assert "2 of 3 hosts as before; h3 not (yet)" in err
        else:
            assert (code, record.state.phase) == (0, "aborted")
            assert "aborted: in wave 3 of 4" in out
            assert "aborted, so there is nothing to go on with" in tapster("rollout", "resume", record.id)[2]


def test_the_status_of_what_is_taken_back_tells_who_has_it_again(
    settings: Settings, tapster: Tapster, file: Path, tmp_path: Path
) -> None:
    gate = Gate()
    gate.open = True
    with fake_fleet(settings, gated(2, gate)):
        assert tapster("push", definition(tmp_path, "old"), "--all", "--wait")[0] == 0
        gate.open = False
        code, shown, _ = rollout(tapster, file, "--all", "--timeout", "3s", "--rollback")
        assert (code, shown["phase"], shown["message"]) == (1, "rolling-back", "1 of 2 hosts as before; h2 not (yet)")
        code, out, _ = tapster("rollout", "status", shown["id"], "-o", "json")
        assert code == 1
        assert {one["host"]: one["outcome"] for one in json.loads(out)["outcomes"]} == {"h1": "done", "h2": "published"}


def test_a_broker_that_restarts_in_a_wave_is_waited_for(
    settings: Settings, own_broker: Broker, file: Path, tmp_path: Path
) -> None:
    gate = Gate()
    with driver(tmp_path, file, "--all", "--wave", "1") as first:
        with fake_fleet(settings, gated(4, gate)):
            until(lambda: first.said("wave 2/4 begins"))
            until(lambda: len(told(settings)) == 2)
            own_broker.save()
        own_broker.restart(signal.SIGKILL)
        until(lambda: first.said("trying again"))
        gate.open = True
        with fake_fleet(settings, gated(4, gate)):
            assert first.process.wait(PATIENCE) == 0
        assert set(images(settings).values()) == {"new"}


def test_ctrl_c_at_any_moment_leaves_what_can_be_gone_on_with(
    settings: Settings, tapster: Tapster, file: Path, tmp_path: Path
) -> None:
    chance = random.Random(8)
    names = [f"h{number}" for number in range(1, 9)]
    with fake_fleet(settings, {name: Fake(up) for name in names}):
        for round_ in range(10):
            assert tapster("push", definition(tmp_path, f"old{round_}"), "--all", "--wait")[0] == 0
            file = definition(tmp_path, f"new{round_}")
            with driver(tmp_path, file, "--all", "--wave", "1") as first:
                time.sleep(chance.uniform(0.0, 2.5))
                code = first.end()
                assert code in {0, 1, -signal.SIGINT, 130}, first.log.read_text()
                assert not first.said("Traceback (?!.*KeyboardInterrupt)") or code != 0
            unfinished = [one for one in records(settings) if one.under_way]
            assert len(unfinished) <= 1
            for record in unfinished:
                action = chance.choice(["resume", "abort", "undo"])
                assert rollout(tapster, action, record.id)[0] == 0, action
                expected = {"resume": {f"new{round_}"}, "undo": {f"old{round_}"}}.get(action)
                if expected:
                    assert set(images(settings).values()) == expected
            assert not any(one.driven for one in records(settings))


def test_another_machines_clock_is_asked_nothing(
    settings: Settings, tapster: Tapster, file: Path, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_fleet(settings, {f"h{number}": Fake(up) for number in range(1, 4)}):
        _, shown, _ = rollout(tapster, file, "--all")
        plan = the_only(settings).plan
        for hours, name in ((-48, "past"), (48, "future")):
            moved = plan.model_copy(update={"started_at": now() + timedelta(hours=hours)})
            put(f"tapster/v1/lab/rollouts/{shown['id']}/plan", moved.model_dump_json().encode())
            out = tapster("rollout", "history")[1]
            assert ("in the future" in out) is (name == "future")
            status = tapster("rollout", "status", shown["id"])[1]
            assert ("s ahead of ours)" in status) is (name == "future")
        assert rollout(tapster, "undo", shown["id"])[0] == 0
        assert set(images(settings).values()) == {"absent"}
    print_history([])
    assert capsys.readouterr().out


def test_a_rollout_of_another_version_is_said(settings: Settings, tapster: Tapster, put: Put) -> None:
    put("tapster/v1/lab/rollouts/abc/plan", b'{"from": "the future"}')
    code, out, err = tapster("rollout", "history", "-o", "json")
    assert (code, out) == (1, "[]\n")
    assert "rollout abc can't be read by this version: RolloutPlan: guest: Field required" in err


def test_a_will_of_one_who_was_cut_off_does_not_vacate_the_new_drivers_seat(
    settings: Settings, file: Path, tmp_path: Path, put: Put
) -> None:
    with fake_fleet(settings, gated(3, Gate())), driver(tmp_path, file, "--all") as first:
        until(lambda: first.said("wave 2/3 begins"))
        record = the_only(settings)
        gone = RolloutDriver(operator="old@there", session="old", driving=False)
        put(f"tapster/v1/lab/rollouts/{record.id}/driver", gone.model_dump_json().encode())
        until(lambda: the_only(settings).driven)
        assert first.process.poll() is None


def test_a_push_by_somebody_else_while_it_is_taken_back_is_left_alone(
    settings: Settings, tapster: Tapster, file: Path, tmp_path: Path
) -> None:
    def only_new(document: Any, sha256: str) -> GuestStatus | None:
        return up(document, sha256) if "new" in document.get("domain_xml", "") else None

    with fake_fleet(settings, {"h1": Fake(only_new), "h2": Fake(up)}):
        _, shown, _ = rollout(tapster, file, "--all", "--timeout", "8s")
        with driver(tmp_path, "undo", shown["id"]) as back:
            until(lambda: told(settings)["h1"]["state"] == "absent")
            assert tapster("push", definition(tmp_path, "newer"), "--host", "h1")[0] == 0
            assert back.process.wait(PATIENCE) == 1
            assert back.said("h1 not \\(yet\\)")
        assert images(settings) == {"h1": "newer", "h2": "absent"}
