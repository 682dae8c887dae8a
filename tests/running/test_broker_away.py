"""The broker is away, dies, forgets or goes back in time: disks stay, and all is told again when it is back."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import Broker, running_broker
from tests.faults.harm import disk_that_can_be_frozen, frozen
from tests.workbench import Bench, domain, loop_disk, tap_disk
from tests.workbench import bench as running_bench


@pytest.fixture
def own(host_parts: None) -> Iterator[tuple[Bench, Broker]]:
    """A host with a broker that may be harmed."""
    with running_broker() as broker, running_bench(broker=broker) as host:
        yield host, broker


def two_disks(host: Bench) -> list[str]:
    return [loop_disk("vda", host.image("a.img")), tap_disk("vdb", host.formatted("b.qcow2", "qcow2"), "qcow2")]


def identities(host: Bench, guest: str) -> list[tuple[str, int]]:
    return [(disk["device_path"], disk["diskseq"]) for disk in host.statuses[guest]["disks"]]


def forget(broker: Broker) -> None:
    """Lose all that the broker has on disk."""
    broker.stop(signal.SIGKILL)
    for file in broker.folder.glob("*.db*"):
        file.unlink()


def test_without_a_broker_everything_comes_up_from_the_store(own: tuple[Bench, Broker]) -> None:
    host, broker = own
    host.push_disks("vm1", *two_disks(host))
    host.until_guest("vm1", "Up")
    host.stop()
    broker.stop()
    # As after a reboot: no device, no server, no runtime folder.
    for device in host.loops():
        subprocess.run(["losetup", "-d", device.path], check=True)
    for pid in host.servers():
        os.kill(pid, signal.SIGTERM)
    host.until(lambda: not host.loops() and not host.servers())
    shutil.rmtree(host.runtime)
    host.start()
    host.until(lambda: len(host.loops()) == 2)
    host.until(lambda: all(host.stable("vm1", target).is_block_device() for target in ("vda", "vdb")))
    host.until(lambda: any("cannot reach the broker" in line["event"] for line in host.log_lines()))
    host.statuses.clear()
    broker.start()
    host.until_guest("vm1", "Up")
    assert len(host.loops()) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_broker_that_comes_back_is_told_everything(own: tuple[Bench, Broker], number: signal.Signals) -> None:
    host, broker = own
    host.push_disks("vm1", *two_disks(host))
    host.until_guest("vm1", "Up")
    before = identities(host, "vm1")
    broker.save()
    broker.restart(number)
    host.push_disks("vm2", loop_disk("vda", host.image("c.img")))
    host.until_guest("vm2", "Up")
    assert identities(host, "vm1") == before


def test_an_emptied_broker_takes_no_disk_down_and_learns_the_status_again(own: tuple[Bench, Broker]) -> None:
    host, broker = own
    host.push_disks("vm1", *two_disks(host))
    host.until_guest("vm1", "Up")
    before = identities(host, "vm1")
    forget(broker)
    host.statuses.clear()
    host.messages.clear()
    broker.start()
    host.until_guest("vm1", "Up")
    assert identities(host, "vm1") == before
    host.until(lambda: any(topic.endswith("/agent") and b"online" in payload for topic, payload in host.messages))
    host.until(lambda: any(topic.endswith("/status/host") for topic, _ in host.messages))
    host.restart()
    host.resync()
    host.statuses.clear()
    host.until_guest("vm1", "Up")
    assert identities(host, "vm1") == before


def test_a_broker_that_went_back_in_time_brings_no_old_definition_back(own: tuple[Bench, Broker]) -> None:
    host, broker = own
    old, new = host.image("old.img"), host.image("new.img")
    host.push("vm1", domain("vm1", loop_disk("vda", old)), generation="1")
    host.until_guest("vm1", "Up")
    broker.save()
    kept = broker.folder / "kept"
    shutil.copy(broker.folder / "mosquitto.db", kept)
    host.push("vm1", domain("vm1", loop_disk("vda", new)), generation="2")
    host.until(lambda: host.statuses["vm1"]["observed_generation"] == 2)
    host.until_guest("vm1", "Up")
    before = identities(host, "vm1")
    forget(broker)
    shutil.copy(kept, broker.folder / "mosquitto.db")
    broker.start()
    host.until(lambda: host.condition("vm1", "Accepted").get("reason") == "StaleGeneration")
    assert host.statuses["vm1"]["observed_generation"] == 2
    assert host.disk("vm1", "vda")["source"] == str(new)
    assert identities(host, "vm1") == before


def test_a_stopped_broker_holds_up_no_disk(own: tuple[Bench, Broker]) -> None:
    host, broker = own
    image = host.images / "later.img"
    host.push_disks("vm1", loop_disk("vda", image))
    host.until_phase("vm1", "vda", "Refused")
    broker.signal(signal.SIGSTOP)
    try:
        host.image("later.img")
        host.until(lambda: host.stable("vm1", "vda").is_block_device())
    finally:
        broker.signal(signal.SIGCONT)
    host.until_phase("vm1", "vda", "Up")


def test_the_agent_stops_at_once_without_a_broker_and_the_next_one_tells_of_it(own: tuple[Bench, Broker]) -> None:
    host, broker = own
    host.push_disks("vm1", loop_disk("vda", host.image("a.img")))
    host.until_guest("vm1", "Up")
    broker.stop(signal.SIGKILL)
    assert host.stop() == 0
    assert len(host.loops()) == 1
    host.messages.clear()
    broker.start()
    host.push_disks("vm2", loop_disk("vda", host.image("b.img")))  # waits until the broker is there for the operator
    host.start()
    host.until_guest("vm2", "Up")
    lives = ["tapster.host.stopping", "tapster.host.started", "tapster.host.synced"]
    host.until(lambda: [event["type"] for event in host.events("tapster.host") if event["type"] in lives] == lives)


def test_what_the_store_takes_while_the_broker_goes_comes_into_force(own: tuple[Bench, Broker]) -> None:
    host, broker = own
    host.stop()
    shutil.rmtree(state := host.folder / "state")
    with disk_that_can_be_frozen(state):
        host.start()
        host.push_disks("vm1", loop_disk("vda", host.image("a.img")))
        host.until_guest("vm1", "Up")
        broker.save()
        with frozen(state):
            host.push_disks("vm2", loop_disk("vda", host.image("b.img")))
            host.until(lambda: host.waits_in("percpu_rwsem_wait"))  # as who writes to a frozen file system does
            broker.save()
            broker.stop(signal.SIGKILL)
            [device] = host.loops()
            subprocess.run(["losetup", "-d", device.path], check=True)  # to be told, so that the loss is noticed
            host.until(lambda: [one.diskseq for one in host.loops()] not in ([], [device.diskseq]))
        broker.start()
        host.until_guest("vm2", "Up")
        host.stop()


def spooled(host: Bench) -> list[str]:
    """The ids of the events that a host keeps on disk."""
    file = host.folder / "state/events.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [json.loads(event["payload"])["id"] for event in events if "payload" in event]


def dropped(host: Bench) -> int | None:
    """How many events the host says that it has dropped; None until it says anything."""
    told = [json.loads(payload) for topic, payload in host.messages if topic == f"{host.topics}/status/host"]
    return told[-1]["events_dropped"] if told else None


def until_told_on_disk(host: Bench) -> None:
    """Take a disk's device away, and wait until it is back and more than that is on the host's disk."""
    device, already = host.loops()[0], len(spooled(host))
    subprocess.run(["losetup", "-d", device.path], check=True)
    host.until(lambda: [one.diskseq for one in host.loops()] not in ([], [device.diskseq]))
    host.until(lambda: host.stable("vm1", "vda").is_block_device() and len(spooled(host)) > already + 1)


def test_what_killed_agents_have_kept_is_told_once_and_in_order_when_the_broker_is_back(
    own: tuple[Bench, Broker],
) -> None:
    host, broker = own
    host.push_disks("vm1", loop_disk("vda", host.image("a.img")))
    host.until_guest("vm1", "Up")
    broker.stop(signal.SIGKILL)
    kept = list[str]()
    for _ in range(3):
        until_told_on_disk(host)
        host.stop(signal.SIGKILL)
        assert spooled(host)[: len(kept)] == kept
        kept = spooled(host)
        host.start()
    host.stop(signal.SIGKILL)
    kept = spooled(host)
    broker.start()
    host.push_disks("vm2", loop_disk("vda", host.image("b.img")))  # waits until the broker is there for the operator
    host.messages.clear()
    host.start()
    host.until_guest("vm2", "Up")
    host.until(lambda: len(host.events()) >= len(kept))
    told = [event["id"] for event in host.events()]
    assert told[: len(kept)] == kept
    assert len(set(told)) == len(told)
    assert len({one.rpartition("-")[0] for one in kept}) >= 3
    host.until(lambda: spooled(host) == [])


def test_what_did_not_fit_is_counted_in_the_status_of_a_host_that_has_no_guest_yet(own: tuple[Bench, Broker]) -> None:
    host, _ = own
    host.stop()
    (host.folder / "state/events.jsonl").write_text('{"dropped": 3}\n')
    host.messages.clear()
    host.start()
    host.until(lambda: dropped(host) == 3)


def test_what_was_published_while_the_agent_was_away_counts_when_it_is_back(own: tuple[Bench, Broker]) -> None:
    host, _ = own
    disks = two_disks(host)
    host.push_disks("vm1", *disks)
    host.push_disks("vm2", loop_disk("vda", host.image("c.img")))
    for guest in ("vm1", "vm2"):
        host.until_guest(guest, "Up")
    host.stop()
    host.absent("vm2")
    host.push_disks("vm3", loop_disk("vda", host.image("d.img")))
    host.push_disks("vm1", disks[0])
    host.start()
    host.until_guest("vm2", "Down")
    host.until_guest("vm3", "Up")
    host.until(lambda: len(host.statuses["vm1"]["disks"]) == 1)
    assert Path(host.disk("vm1", "vda")["stable_path"]).is_block_device()
    assert host.servers() == []
