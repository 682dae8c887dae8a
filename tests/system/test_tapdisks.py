"""A tapdisk has a unit of its own, too, as its relay has one: here the double, since no package has the real one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.machine import CHECKOUT_INSIDE, Machine, booted
from tests.system.writer import writing
from tests.tapdisk.host import install_double
from tests.workbench import tap_disk

CONTROL = "/run/blktap-control"


@pytest.fixture
def machine(installed_root: Path, base_root: Path) -> Iterator[Machine]:
    """One whose agent prefers tapdisk."""
    with booted([installed_root, base_root]) as one:
        double = Path(CHECKOUT_INSIDE, "tests/tapdisk/double/tap-ctl")
        install_double(one.root / "usr/local/bin/tap-ctl", Path(CONTROL), double)
        one.configure('[blktap]\nservers = ["tapdisk", "storage-daemon"]\n')
        one.shell(f"mkdir {CONTROL}; systemctl restart tapster")
        yield one


def tap(machine: Machine, name: str) -> dict[str, Any]:
    """What the status says of a disk's tapdisk; nothing if it has none."""
    effective = machine.disks()[name]["effective"] or {}
    return effective["tap"] if effective.get("server") == "tapdisk" else {}


def units(machine: Machine) -> list[str]:
    """Every unit of a tap's that there is, whatever its state."""
    listed = machine.shell("systemctl list-units --plain --no-legend --all 'tapster-tap@*'")
    return [line.split()[0] for line in listed.splitlines()]


def await_another_agent(machine: Machine, signal: str) -> None:
    """End the agent, and wait until the next one is in step."""
    before = main_pid(machine)
    machine.shell(f"systemctl kill --signal={signal} tapster")
    machine.until(lambda: main_pid(machine) not in {before, "0"}, "there is another agent")
    machine.until(lambda: machine.is_active("tapster.service"), "the agent is ready")
    machine.in_step()


def main_pid(machine: Machine) -> str:
    """The agent's process id."""
    return machine.show("tapster.service", "MainPID")["MainPID"]


def test_a_tapdisk_lives_and_ends_in_its_unit(machine: Machine) -> None:
    image = machine.image("tapdisk-a.raw", "8M")
    machine.shell(f"chown nobody {image}; chmod 600 {image}")
    machine.push("served", tap_disk("vda", image))
    first = tap(machine, "served/vda")
    relay = first["unit"].replace(".service", "-relay.service")
    assert sorted(units(machine)) == sorted([first["unit"], relay])
    group = f"/sys/fs/cgroup/tapster.slice/{first['unit']}"
    assert str(first["process_id"]) in machine.shell(f"cat {group}/cgroup.procs").split()
    with writing(machine, "served", "vda"):
        for signal in ("TERM", "KILL"):
            await_another_agent(machine, signal)
            assert tap(machine, "served/vda") == first

    machine.shell(f"kill -KILL {first['process_id']}")
    machine.until(
        lambda: tap(machine, "served/vda").get("process_id") not in {None, first["process_id"]}, "it is replaced"
    )
    machine.until(lambda: machine.disks()["served/vda"]["phase"] == "Up", "the disk is up again")
    assert machine.disks()["served/vda"]["last_outage"]

    machine.run("tapster", "absent", "served", "--wait")
    machine.until(lambda: not units(machine), "the units have gone")
    assert machine.shell(f"find {CONTROL} -type s -o -name 'tapdisk-*'") == ""


def test_a_hung_tapdisk_is_ended_by_its_unit_and_a_held_one_is_not(machine: Machine) -> None:
    machine.write("/etc/systemd/system/tapster-tap@.service.d/soon.conf", "[Service]\nWatchdogSec=3\n")
    machine.shell("systemctl daemon-reload")
    machine.push("hung", tap_disk("vda", machine.image("tapdisk-b.raw", "8M")))
    first = tap(machine, "hung/vda")
    machine.shell("tapster quiesce hung; sleep 6; tapster resume hung")
    assert tap(machine, "hung/vda") == first, "it is held and answers, and is left alone"

    machine.shell(f"kill -STOP {first['process_id']}")
    machine.until(
        lambda: tap(machine, "hung/vda").get("process_id") not in {None, first["process_id"]}, "it is replaced"
    )
    assert "Watchdog timeout (limit 3s)!" in str([entry["MESSAGE"] for entry in machine.journal(first["unit"])])
