"""The machine's clock jumps, for the agent alone: libfaketime stands between it and CLOCK_REALTIME.

A time namespace would not do: it leaves that clock as it is (time_namespaces(7)).
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.on_host import open_files
from tests.workbench import Bench, loop_disk, tap_disk
from tests.workbench import bench as running_bench

LIBRARY = Path(f"/usr/lib/{os.uname().machine}-linux-gnu/faketime/libfaketime.so.1")
JUMPS = {"a year ahead": timedelta(days=365), "a year back": timedelta(days=-365), "to the hour": timedelta(hours=-1)}


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """What the agent's clock is ahead of the real one by, as libfaketime reads it each time anew."""
    if not LIBRARY.exists():
        message = f"{LIBRARY} is not there: apt-get install libfaketime"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    file = tmp_path / "clock"
    file.write_text("+0")
    return file


@pytest.fixture
def bench(host_parts: None, broker: Broker, clock: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A host whose agent, with all that it starts, goes by that clock."""
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(LIBRARY))
        patch.setenv("FAKETIME_TIMESTAMP_FILE", str(clock))
        patch.setenv("FAKETIME_NO_CACHE", "1")
        patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        with running_bench(broker=broker) as host:
            patch.undo()
            yield host


def jump(clock: Path, by: timedelta) -> None:
    draft = clock.with_name("clock.new")
    draft.write_text(f"{by.total_seconds():+.0f}")
    draft.replace(clock)


def since(bench: Bench, guest: str) -> datetime:
    return datetime.fromisoformat(bench.disk(guest, "vda")["since"])


@pytest.mark.parametrize("by", JUMPS.values(), ids=JUMPS.keys())
def test_a_jump_of_the_clock_moves_dates_and_nothing_else(bench: Bench, clock: Path, by: timedelta) -> None:
    bench.push_disks("still", loop_disk("vda", bench.image("a.img")), tap_disk("vdb", bench.image("b.img")))
    bench.push_disks("hit", tap_disk("vda", bench.image("c.img")))
    bench.push_disks("late", loop_disk("vda", bench.images / "late.img"))
    still = bench.until_guest("still", "Up")
    bench.until_guest("hit", "Up")
    bench.until_phase("late", "vda", "Refused")
    servers = bench.servers()
    with bench.stable("hit", "vda").open("rb", buffering=0):
        hit = next(server for server in servers if any("c.img" in file for file in open_files(server)))
        os.kill(hit, signal.SIGKILL)
        bench.until_phase("hit", "vda", "Lost")
        jump(clock, by)
    bench.until_phase("hit", "vda", "Up")
    assert abs(since(bench, "hit") - datetime.now(UTC) - by) < timedelta(minutes=10)  # or nothing was injected
    outage = bench.disk("hit", "vda")["last_outage"]
    assert datetime.fromisoformat(outage["began"]) <= datetime.fromisoformat(outage["ended"])
    bench.push_disks("new", loop_disk("vda", bench.image("d.img")))
    bench.until_guest("new", "Up")
    bench.image("late.img")
    bench.until_guest("late", "Up")
    device = bench.disk("new", "vda")
    subprocess.run(["losetup", "-d", device["device_path"]], check=True)
    bench.until(lambda: bench.disk("new", "vda")["diskseq"] not in {None, device["diskseq"]})
    bench.restart(signal.SIGKILL)
    for guest in ("still", "hit", "late", "new"):
        bench.until_guest(guest, "Up")
    assert [disk["diskseq"] for disk in bench.statuses["still"]["disks"]] == [d["diskseq"] for d in still["disks"]]
    assert [line for line in bench.log_lines() if "exception" in line] == []
