"""Whoever can publish can publish junk: it takes no disk down, holds up no other guest and fills no memory."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tests.broker import running_broker
from tests.faults.harm import agent_pid
from tests.workbench import Bench, loop_disk
from tests.workbench import bench as running_bench

COUNT = 10_000
LONG = 100.0
"""Seconds after which the test gives up: a bound, not a measure."""

ROOM = "[limits]\nguests = 20_000"
"""Junk takes a guest's room as long as it is on the bus, so that whoever can publish can't fill the memory."""

MEMORY_KIB = 500 << 10


@pytest.fixture
def own(host_parts: None) -> Iterator[Bench]:
    """A host with a broker of its own, as junk that is retained stays there."""
    with running_broker() as broker, running_bench(ROOM, broker=broker) as host:
        yield host


def memory_kib(pid: int) -> int:
    peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert peak is not None
    return int(peak[1])


def publish_junk(bench: Bench) -> None:
    """As fast as the broker takes it, which a wait for each document would not be."""
    flood = mqtt.Client(CallbackAPIVersion.VERSION2, "flood", protocol=mqtt.MQTTv5)
    flood.connect(bench.broker.host, bench.broker.port)
    flood.loop_start()
    try:
        bench.until(flood.is_connected)
        for number in range(COUNT):
            junk = f"<domain><name>junk-{number}</name><devices>{number}"
            last = flood.publish(f"{bench.topics}/desired/guests/junk-{number}", junk, qos=1, retain=True)
        last.wait_for_publish(LONG)
    finally:
        flood.disconnect()
        flood.loop_stop()


def until_there(stable: Path) -> None:
    """By the disk itself, since the bus has ten thousand statuses to deliver before any that tells of it."""
    deadline = time.monotonic() + LONG
    while not stable.is_block_device():
        assert time.monotonic() < deadline, f"{stable} did not come up"
        time.sleep(0.05)


@pytest.mark.timeout(4 * LONG)
def test_ten_thousand_junk_documents_harm_nobody(own: Bench) -> None:
    own.push_disks("vm1", loop_disk("vda", own.image("a.img")))
    own.until_phase("vm1", "vda", "Up")
    device = own.stable("vm1", "vda").readlink()
    publish_junk(own)
    own.push_disks("vm1", loop_disk("vda", own.images / "a.img"), loop_disk("vdb", own.image("b.img")))
    own.push_disks("vm2", loop_disk("vda", own.image("c.img")))
    until_there(own.stable("vm1", "vdb"))
    until_there(own.stable("vm2", "vda"))
    assert own.stable("vm1", "vda").readlink() == device
    assert memory_kib(agent_pid(own)) < MEMORY_KIB
