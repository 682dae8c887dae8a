"""`tapster grow`: image and disk become larger under their user, and what can't be made larger is left as it is."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from agent.cli.grow import ask, size_of
from reconcilers.growth import GrowRequests
from reconcilers.spec import DiskKey
from tests.running.test_quiesce import holds, interrupted, tapster, writing
from tests.workbench import Bench, loop_disk, tap_disk

MIB = 1 << 20


def virtual_size(image: Path, fmt: str) -> int:
    """How many bytes the image has for a disk, as qemu-img sees it."""
    told = subprocess.run(
        ["qemu-img", "info", "-U", "-f", fmt, "--output", "json", image], capture_output=True, check=True
    )
    return int(json.loads(told.stdout)["virtual-size"])


def disk(fmt: str, image: Path) -> str:
    """One for loop where there is no format; the others have each node that a server can have."""
    if not fmt:
        return loop_disk("vda", image)
    driver = f"<driver name='tap2' type='{fmt}' discard='ignore'/>"
    limit = "<iotune><total_iops_sec>5000</total_iops_sec></iotune>"
    return f"<disk>{driver}<source file='{image}'/><target dev='vda'/>{limit}</disk>"


@pytest.mark.parametrize(("fmt", "qemu"), [("", "raw"), ("aio", "raw"), ("qcow2", "qcow2"), ("qed", "qed")])
def test_a_disk_grows_under_a_writer(bench: Bench, fmt: str, qemu: str) -> None:
    image = bench.formatted("image", qemu)
    bench.push_disks("vm1", disk(fmt, image))
    up, last = bench.until_phase("vm1", "vda", "Up"), os.urandom(MIB)
    with writing(bench) as writer:
        grown = tapster(bench, "grow", "vm1", "vda", "64M")
        assert (grown.returncode, grown.stderr) == (0, "")
        bench.until_status("vm1", "vda", phase="Up", size_bytes=64 * MIB)
        writer.wait_for_more(bench)
    with bench.stable("vm1", "vda").open("r+b", buffering=0) as device:
        os.pwrite(device.fileno(), last, 63 * MIB)
        os.fsync(device.fileno())
    assert bench.disk("vm1", "vda")["diskseq"] == up["diskseq"]
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    assert virtual_size(image, qemu) == 64 * MIB
    holds(image, qemu, writer.done)
    assert image.with_suffix(".converted").read_bytes()[63 * MIB :] == last
    assert image.stat().st_blocks * 512 < 32 * MIB  # what was not written takes no room
    assert list((bench.runtime / "grows").iterdir()) == []


def test_who_is_interrupted_asks_no_more(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("image")))
    up = bench.until_phase("vm1", "vda", "Up")
    assert interrupted(bench, bench.runtime / "grows", "grow", "vm1", "vda", "64M") != 0
    assert not list((bench.runtime / "grows").iterdir())
    bench.resync()
    assert bench.disk("vm1", "vda")["size_bytes"] == up["size_bytes"]


def test_who_is_killed_over_it_leaves_it_to_the_next_agent(bench: Bench) -> None:
    image = bench.formatted("image", "qcow2")
    bench.push_disks("vm1", tap_disk("vda", image, "qcow2"))
    up = bench.until_phase("vm1", "vda", "Up")
    bench.stop(signal.SIGKILL)
    requests, key = GrowRequests(bench.runtime), DiskKey("vm1", "vda")
    ask(requests, key, 16 * MIB)
    bench.start()
    bench.until_status("vm1", "vda", phase="Up", size_bytes=16 * MIB)
    bench.until(lambda: requests.answered(key))
    assert requests.asked(key) is None
    assert bench.disk("vm1", "vda")["diskseq"] == up["diskseq"]


@pytest.mark.parametrize(
    ("fmt", "more", "size", "why"),
    [
        ("qcow2", "", "4M", "never made smaller"),
        ("qcow2", "", "8M", "it has 8388608 bytes already"),
        ("qcow2", "", "9000001", "no multiple of its sectors of 512"),
        ("qcow2", "<readonly/>", "16M", "it is read-only"),
        ("vhd", "", "16M", "no server makes a vhd image larger; convert it to qcow2"),
    ],
)
def test_what_can_not_grow_is_left_as_it_is(bench: Bench, fmt: str, more: str, size: str, why: str) -> None:
    image = bench.formatted("image", "vpc" if fmt == "vhd" else fmt)
    bench.push_disks("vm1", tap_disk("vda", image, fmt, more))
    up, content = bench.until_phase("vm1", "vda", "Up"), image.read_bytes()
    refused = tapster(bench, "grow", "vm1", "vda", size)
    assert refused.returncode == 1
    assert why in refused.stderr
    bench.statuses.clear()
    bench.resync()
    again = bench.until_phase("vm1", "vda", "Up")
    assert (again["size_bytes"], again["diskseq"]) == (up["size_bytes"], up["diskseq"])
    assert image.read_bytes() == content


def test_what_is_not_there_or_has_no_agent_is_refused(bench: Bench) -> None:
    assert "it is not up here" in tapster(bench, "grow", "vm1", "vda", "1G").stderr
    assert tapster(bench, "grow", "vm1", "vda", "lots").returncode == 2
    bench.stop()
    assert "no agent runs here" in tapster(bench, "grow", "vm1", "vda", "1G").stderr


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("20G", 20 << 30), ("3T", 3 << 40)])
def test_a_size_is_bytes_or_has_a_unit(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "1g", "G", "\u0661", "9223372036854775808", "+1G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        size_of(text)
