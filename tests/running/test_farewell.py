"""What a purge may be told to do: take down what nobody uses, without a bus, and leave the rest as it is."""

import os
import subprocess
import sys

from tests.workbench import Bench, loop_disk, tap_disk


def farewell(bench: Bench) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent.farewell"],
        env=os.environ | {"TAPSTER_CONFIG": str(bench.config)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_what_nobody_uses_goes_and_what_is_in_use_stays(bench: Bench) -> None:
    bench.push_disks(
        "vm1", loop_disk("vda", bench.image("a.img")), tap_disk("vdb", bench.image("b.img")),
        loop_disk("vdc", bench.image("c.img")),
    )  # fmt: skip
    bench.until_guest("vm1", "Up")
    bench.stop()
    with bench.stable("vm1", "vdc").open("rb"):
        done = farewell(bench)
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert lines[:2] == ["tapster: vm1/vda is down", "tapster: vm1/vdb is down"]
        assert lines[2].startswith("tapster: vm1/vdc stays: DeviceInUse: ")
        assert [path.name for path in bench.runtime.glob("disks/vm1/*")] == ["vdc"]
        assert len(bench.loops()) == 1
    assert farewell(bench).returncode == 0
    bench.assert_clean()
    assert sorted(image.name for image in bench.images.iterdir()) == ["a.img", "b.img", "c.img"]


def test_beside_a_running_agent_nothing_is_touched(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    bench.until_guest("vm1", "Up")
    done = farewell(bench)
    assert done.returncode == 1
    assert "disks stay as they are: SourceInUse: another agent runs" in done.stderr
    assert len(bench.loops()) == 1
