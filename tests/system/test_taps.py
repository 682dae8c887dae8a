"""A tap runs in a unit of its own, which outlives the agent and ends its server when that hangs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running.test_server_events import corrupt
from tests.system.machine import IMAGES, Machine, booted
from tests.system.older import TAPS_BESIDE
from tests.system.writer import writing
from tests.workbench import domain, loop_disk, tap_disk

MANY, A_GUEST = 60, 20
"""Taps at once, and how many of them one guest has."""

# Machines share the control groups of the host, so no two that run at one time have disks of one name.


@pytest.fixture(scope="module")
def shared(installed_root: Path, base_root: Path) -> Iterator[Machine]:
    """One machine for tests that leave other guests' disks as they were."""
    with booted([installed_root, base_root]) as machine:
        yield machine


def began_and_ended(machine: Machine, unit: str) -> tuple[int, int]:
    """When a unit's last start was, in microseconds."""
    moments = ("InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    shown = machine.show(unit, *moments)
    return int(shown[moments[0]]), int(shown[moments[1]])


def tap(machine: Machine, name: str) -> dict[str, Any]:
    """What the status says of a disk's tap; nothing if it has none."""
    effective = machine.disks()[name]["effective"]
    return (effective or {}).get("tap") or {}


def test_each_tap_has_a_unit_of_its_own_without_a_tie_to_the_agent(shared: Machine) -> None:
    disks = [tap_disk("vda", shared.image("a.raw")), tap_disk("vdb", shared.image("b.qcow2", fmt="qcow2"), "qcow2")]
    shared.push("vm1", *disks)
    taps = [tap(shared, f"vm1/{target}") for target in ("vda", "vdb")]
    assert len({each["unit"] for each in taps}) == 2
    for each in taps:
        assert each["unit"].startswith("tapster-tap@")
        assert f"0::/tapster.slice/{each['unit']}" in shared.shell(f"cat /proc/{each['process_id']}/cgroup").split()
        ties = shared.show(each["unit"], "PartOf", "BindsTo", "Requires", "Conflicts", "After", "Wants")
        assert "tapster.service" not in str(ties)
        assert "shutdown.target" not in str(ties)
        limits = shared.show(each["unit"], "MemoryMax", "LimitNOFILE", "TasksMax")
        assert limits == {"MemoryMax": str(2 << 30), "LimitNOFILE": "1024", "TasksMax": "256"}
        main = shared.show(each["unit"], "MainPID")["MainPID"]
        assert "CapPrm:\t0000000000000000" in shared.shell(f"cat /proc/{main}/status")
    assert shared.shell("cat /sys/fs/cgroup/tapster.slice/tapster.service/cgroup.procs").split() == [
        shared.show("tapster.service", "MainPID")["MainPID"]
    ]


def test_what_a_server_says_is_in_its_own_log_by_guest_and_target(shared: Machine) -> None:
    image = shared.image("c.qcow2", fmt="qcow2")
    shared.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", str(image))
    corrupt(shared.root / str(image).lstrip("/"))
    shared.push("vm2", tap_disk("vda", image, "qcow2"))
    shared.shell("dd if=/dev/zero of=/run/tapster/disks/vm2/vda bs=4k count=1 seek=16 oflag=direct || true")
    unit = tap(shared, "vm2/vda")["unit"]

    def told() -> list[dict[str, Any]]:
        return [entry for entry in shared.journal(unit) if entry.get("GUEST") == "vm2"]

    shared.until(told, "its words are in the journal")
    assert "Marking image as corrupt" in str([entry["MESSAGE"] for entry in told()])
    assert {(entry["TARGET"], entry["SYSLOG_IDENTIFIER"]) for entry in told()} == {("vda", "tapster-tap")}


def test_many_taps_come_up_side_by_side(shared: Machine, request: pytest.FixtureRequest) -> None:
    count = request.config.getoption("taps", None) or MANY
    shared.shell(f"for n in $(seq 0 {count - 1}); do truncate -s 8M {IMAGES}/many$n.raw; done")
    disks = [tap_disk(f"sd{number}", Path(IMAGES, f"many{number}.raw")) for number in range(count)]
    guests = {f"many{first}": disks[first : first + A_GUEST] for first in range(0, count, A_GUEST)}
    for guest, its_disks in guests.items():
        shared.write(f"/root/{guest}.xml", domain(guest, *its_disks))
    shared.run("tapster", "push", "--wait", *(f"/root/{guest}.xml" for guest in guests))
    up = [disk for name, disk in shared.disks().items() if name.startswith("many")]
    units = {disk["effective"]["tap"]["unit"] for disk in up}
    assert len(units) == count
    spans = [began_and_ended(shared, unit) for unit in units]
    at_once = max(sum(began <= other < ended for began, ended in spans) for other, _ in spans)
    assert at_once > 1, "each start waited for the end of the one before"
    shared.run("tapster", "absent", *guests, "--wait")
    shared.until(
        lambda: not units & set(shared.shell("systemctl list-units --plain --no-legend --all").split()),
        "the units have gone",
    )


def test_a_hung_tap_is_ended_by_its_own_unit_with_an_agent_and_without(machine: Machine) -> None:
    machine.write("/etc/systemd/system/tapster-tap@.service.d/soon.conf", "[Service]\nWatchdogSec=3\n")
    machine.shell("systemctl daemon-reload")
    machine.push("hung", loop_disk("vda", machine.image("a.raw", "8M")), tap_disk("vdb", machine.image("b.raw", "8M")))
    with writing(machine, "hung", "vda"):
        first = tap(machine, "hung/vdb")
        machine.shell("sleep 5")
        assert tap(machine, "hung/vdb") == first, "it works, and is left alone"

        machine.shell(f"kill -STOP {first['process_id']}")
        machine.until(
            lambda: tap(machine, "hung/vdb").get("process_id") not in {None, first["process_id"]}, "it is replaced"
        )
        assert machine.disks()["hung/vdb"]["last_outage"]
        said = [entry["MESSAGE"] for entry in machine.journal(first["unit"])]
        assert "Watchdog timeout (limit 3s)!" in str(said)

        second = tap(machine, "hung/vdb")
        machine.shell(f"systemctl stop tapster; kill -STOP {second['process_id']}")
        machine.until(lambda: not machine.is_active(second["unit"]), "its unit ends it without an agent")
        machine.shell("systemctl start tapster")
        machine.in_step()
        machine.until(lambda: machine.disks()["hung/vdb"]["phase"] == "Up", "the next agent replaces it")


def test_taps_of_the_older_layout_are_taken_over(machine: Machine) -> None:
    drop_in = "/etc/systemd/system/tapster.service.d/older.conf"
    machine.write(drop_in, TAPS_BESIDE)
    machine.shell("systemctl daemon-reload; systemctl restart tapster")
    machine.push("hung", tap_disk("vda", machine.image("a.raw", "8M")))
    before = tap(machine, "hung/vda")
    assert before["unit"] == "tapster.service"
    machine.shell(f"rm {drop_in}; systemctl daemon-reload")
    with writing(machine, "hung", "vda"):
        machine.shell("systemctl restart tapster")
        machine.in_step()
        assert tap(machine, "hung/vda") == before
        machine.push("newer", tap_disk("vda", machine.image("b.raw", "8M")))
        assert tap(machine, "newer/vda")["unit"].startswith("tapster-tap@")
