"""When a disk could not be used stands in its status, in events and in `tapster status`: from when, to when, why."""

import os
import signal
import subprocess
import sys
from datetime import datetime
from typing import Any

from tests.workbench import Bench, loop_disk, tap_disk


def outage(bench: Bench, target: str) -> dict[str, Any]:
    return bench.disk("vm1", target).get("last_outage") or {}


def told(bench: Bench, target: str) -> list[dict[str, Any]]:
    return [one["data"] for one in bench.events("tapster.disk.outage") if one["data"]["target"] == target]


def status(bench: Bench) -> str:
    command = [sys.executable, "-c", "from agent.cli.app import main; main()", "status", "--config", str(bench.config)]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def test_an_outage_that_is_mended_at_once_is_told_with_its_beginning_and_end(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")), tap_disk("vdb", bench.image("b.img")))
    up = bench.until_guest("vm1", "Up")
    assert [disk["last_outage"] for disk in up["disks"]] == [None, None]
    subprocess.run(["losetup", "-d", up["disks"][0]["device_path"]], check=True)
    os.kill(bench.servers()[0], signal.SIGKILL)
    for target, reason in (("vda", "DeviceVanished"), ("vdb", "ServerLost")):
        bench.until(lambda target=target: outage(bench, target).get("ended"))  # type: ignore[misc]
        one = outage(bench, target)
        assert one["reason"] == reason
        assert datetime.fromisoformat(one["began"]) <= datetime.fromisoformat(one["ended"])
        # On a slow host its beginning is told before its end.
        bench.until(lambda target=target: any(each["ended"] for each in told(bench, target)))  # type: ignore[misc]
        event = told(bench, target)[-1]
        assert {name: event[name] for name in one} == one
        assert f"vm1/{target} was out for" in status(bench)


def test_an_outage_lasts_until_its_disk_is_let_go_and_outlives_the_agent(bench: Bench) -> None:
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    bench.until_guest("vm1", "Up")
    with bench.stable("vm1", "vda").open("rb", buffering=0):
        os.kill(bench.servers()[0], signal.SIGKILL)
        lost = bench.until_phase("vm1", "vda", "Lost")
        began = lost["last_outage"]["began"]
        assert lost["last_outage"]["ended"] is None
        assert {holder["pid"] for holder in lost["in_use"]["processes"]} == {os.getpid()}
        assert "vm1/vda has been out since" in status(bench)
        bench.restart(signal.SIGKILL)
        bench.until_phase("vm1", "vda", "Lost")
        assert outage(bench, "vda")["began"] == began
    bench.until_phase("vm1", "vda", "Up")
    assert outage(bench, "vda")["began"] == began
    assert outage(bench, "vda")["ended"]
    bench.until(lambda: len(told(bench, "vda")) == 2)
    assert [bool(event["ended"]) for event in told(bench, "vda")] == [False, True]
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    bench.assert_clean()


def test_what_a_document_changes_is_no_outage(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    before = bench.until_phase("vm1", "vda", "Up")
    bench.push_disks("vm1", tap_disk("vda", bench.images / "a.img"))
    bench.until(lambda: bench.disk("vm1", "vda")["diskseq"] not in {None, before["diskseq"]})
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    bench.push_disks("vm1", loop_disk("vda", bench.images / "a.img"))
    bench.until_phase("vm1", "vda", "Up")
    assert bench.events("tapster.disk.outage") == []
