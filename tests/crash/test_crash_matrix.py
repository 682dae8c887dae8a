"""The agent is killed in front of every effect it has, started again, and must come to exactly what is wanted.

No list of crash points is kept: a recording of each scenario shows every system call that changes something, and the
agent is then killed in front of each of them. A call that is unknown fails the recording, and a place in the code with
an effect that no scenario comes by fails the last test.
"""

import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.crash.nursery import Nursery
from tests.crash.scenarios import SCENARIOS, Scenario
from tests.crash.sites import NOT_REACHED, effect_sites
from tests.crash.tracer import KILLED, UNCLASSIFIED
from tests.crash.world import CrashBench, Disk, Point
from tests.on_host import FOLDER_PREFIX

TRIES = 3
"""Some effects come in another order now and then; a point that is not reached so often is an error."""

MAY_STAY_AWAY = {"LOOP_CTL_ADD /dev/loop-control", "MQTT PUBACK"}
"""What depends on how many loop devices others have, and on what else the broker sends."""

SITES = dict(effect_sites())  # at once, since an agent shows lines of the code as it is now

reached: dict[str, set[str]] = {}


@pytest.fixture(scope="module")
def nursery(host_parts: None) -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def crash_bench(nursery: Nursery, broker: Broker, scenario: Scenario) -> Iterator[CrashBench]:
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    bench = CrashBench(folder, broker, nursery, sockets=scenario.sockets)
    try:
        yield bench
    finally:
        bench.close()
        shutil.rmtree(folder)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_kill_in_front_of_any_effect_leaves_nothing_wrong(scenario: Scenario, crash_bench: CrashBench) -> None:
    bench = crash_bench
    reached[scenario.name] = _lines_run(bench, scenario)
    bench.start()
    points = _points(bench, scenario)
    sys.stdout.write(f"{scenario.name}: {len(points)} points\n")
    wrong = {str(point): found for point in points if (found := _crash(bench, scenario, point))}
    assert wrong == {}
    assert [line for line in bench.log_lines() if "exception" in line] == []


def test_every_place_with_an_effect_is_come_by() -> None:
    if len(reached) < len(SCENARIOS):
        pytest.skip("only after all scenarios")
    run = set().union(*reached.values())
    left = {f"{where.partition(':')[0]}: {call}" for where, call in SITES.items() if where not in run}
    assert left - NOT_REACHED.keys() == set()
    assert NOT_REACHED.keys() - {f"{where.partition(':')[0]}: {call}" for where, call in SITES.items()} == set()


def _lines_run(bench: CrashBench, scenario: Scenario) -> set[str]:
    """Go through the scenario once, and see which lines of code that takes."""
    bench.lines = bench.folder / "lines"
    bench.start()
    bench.wait_synced()
    _prepare(bench, scenario)
    scenario.happens(bench)
    _wait_for_rest(bench, scenario)  # a second SIGTERM would end one that stops before it has noted its lines
    _finish(bench, scenario)
    if bench.running:
        bench.stop()
    lines, bench.lines = bench.lines, None
    return set(lines.read_text().splitlines())


def _points(bench: CrashBench, scenario: Scenario) -> list[Point]:
    _prepare(bench, scenario)
    with bench.traced() as effects:
        scenario.happens(bench)
        _wait_for_rest(bench, scenario)
    assert _finish(bench, scenario) == []
    assert [effect for effect in effects if effect.startswith(UNCLASSIFIED)] == []
    seen, points = Counter[str](), []
    for effect in effects:
        seen[effect] += 1
        is_again = scenario.is_retried and seen[effect] > 1
        if not is_again and not _is_of_spool(effect) and (scenario.stores or not _is_of_store(effect)):
            points.append(Point(effect, seen[effect]))
    assert points, f"nothing happens in {scenario.name}"
    return points


def _is_of_store(effect: str) -> bool:
    return effect == "MQTT PUBACK" or effect.partition(" ")[2].partition("/")[0] == "state"


def _is_of_spool(effect: str) -> bool:
    """Events that the broker had not taken within a second: that is chance. bus/test_spool has the file cut short."""
    return "state/events.jsonl" in effect


def _crash(bench: CrashBench, scenario: Scenario, point: Point) -> list[str]:
    """Kill the agent at the point and start it again; returns what is wrong then."""
    for _ in range(TRIES):
        _prepare(bench, scenario)
        with bench.traced(point) as effects:
            scenario.happens(bench)
            _wait_for_rest(bench, scenario)
        if killed := KILLED in effects:
            bench.until(lambda: not bench.running)  # all may be at rest before it is dead
        if found := _finish(bench, scenario, killed=killed):
            return found
        if killed:
            return []
    return [] if point.name in MAY_STAY_AWAY else ["it was not come by"]


def _prepare(bench: CrashBench, scenario: Scenario) -> None:
    bench.let_go()
    scenario.reset(bench)
    if scenario.before is not None:
        bench.want(*scenario.before)
        assert bench.wait_settled(scenario.before, "Up") == []
        bench.mark(scenario.before)
    if scenario.starts:
        if bench.running:
            bench.stop(signal.SIGKILL)
        bench.hold()


def _wait_for_rest(bench: CrashBench, scenario: Scenario) -> None:
    def rests() -> bool:
        if not scenario.says(bench):
            return False
        return scenario.after is None or bench.is_settled(scenario.after, scenario.phase)

    bench.until(lambda: not bench.running or (not scenario.stops and rests()))


def _finish(bench: CrashBench, scenario: Scenario, *, killed: bool = False) -> list[str]:
    """Have an agent run, wait for the scenario's end, and tell what is wrong."""
    if killed and scenario.meanwhile:
        scenario.meanwhile(bench)
    if not bench.running:
        bench.start()
        bench.wait_synced()
    if killed and scenario.meanwhile:
        return _wrong(bench, *scenario.end)
    found = _wrong(bench, scenario.after, scenario.phase)
    if not found and not bench.becomes(lambda: scenario.says(bench)):
        found = ["the status does not say it"]
    if not found and scenario.afterwards:
        scenario.afterwards(bench)
        found = _wrong(bench, *scenario.end)
    return found


def _wrong(bench: CrashBench, disks: tuple[Disk, ...] | None, phase: str) -> list[str]:
    return [] if disks is None else bench.wait_settled(disks, phase) or bench.damage(disks)
