"""Whatever is done to the agent by systemd, dpkg or a signal: disks stay up and writers on them notice nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.system.conftest import NEWER, Packages
from tests.system.machine import Machine
from tests.system.writer import writing
from tests.workbench import loop_disk, tap_disk

TARGETS = ("vda", "vdb", "vdc")


def bring_up(machine: Machine) -> None:
    machine.push(
        "vm1",
        loop_disk("vda", machine.image("a.raw", "8M")),
        tap_disk("vdb", machine.image("b.raw", "8M")),
        tap_disk("vdc", machine.image("c.qcow2", "8M", "qcow2"), "qcow2"),
    )


def identities(machine: Machine) -> dict[str, tuple[str, int, dict[str, Any] | None]]:
    """What tells a device and a server that were kept from those that were made anew."""
    disks = machine.disks()
    assert {disk["phase"] for disk in disks.values()} == {"Up"}, disks
    return {name: (disk["device_path"], disk["diskseq"], disk["effective"].get("tap")) for name, disk in disks.items()}


def kill(machine: Machine) -> None:
    before = machine.show("tapster.service", "MainPID")["MainPID"]
    machine.shell("systemctl kill --kill-whom=main --signal=KILL tapster")
    machine.until(lambda: machine.show("tapster.service", "MainPID")["MainPID"] not in {before, "0"}, "it is restarted")
    machine.until(lambda: machine.is_active("tapster.service"), "it is ready again")
    assert machine.show("tapster.service", "NRestarts") == {"NRestarts": "1"}


def stop_and_start(machine: Machine) -> None:
    machine.shell("systemctl stop tapster")
    assert not machine.is_active("tapster.service")
    for target in TARGETS:
        machine.shell(f"dd if=/run/tapster/disks/vm1/{target} of=/dev/null bs=4k count=1 iflag=direct status=none")
    machine.shell("systemctl start tapster")


def systemctl(verb: str) -> Callable[[Machine], None]:
    def act(machine: Machine) -> None:
        machine.run("systemctl", verb, "tapster")

    return act


@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(systemctl("restart"), id="restart"),
        pytest.param(kill, id="kill -9"),
        pytest.param(stop_and_start, id="stop and start"),
        pytest.param(systemctl("reload"), id="reload"),
    ],
)
def test_writers_notice_nothing(machine: Machine, disturb: Callable[[Machine], None]) -> None:
    bring_up(machine)
    before = identities(machine)
    with writing(machine, "vm1", *TARGETS):
        disturb(machine)
        machine.until(lambda: machine.is_active("tapster.service"), "the agent is ready")
        machine.in_step()
        assert identities(machine) == before


def test_an_upgrade_and_a_downgrade_are_not_noticed_and_keep_the_settings(machine: Machine, packages: Packages) -> None:
    bring_up(machine)
    before = identities(machine)
    settings = machine.shell("cat /etc/tapster/tapster.toml")
    pid = machine.show("tapster.service", "MainPID")
    with writing(machine, "vm1", *TARGETS):
        machine.install(packages.newer)
        assert machine.show("tapster.service", "MainPID") != pid, "the old agent still runs"
        machine.in_step()
        assert f"tapster {NEWER}" in machine.shell("tapster status")
        assert identities(machine) == before

        machine.install(packages.current)
        machine.in_step()
        assert f"tapster {NEWER}" not in machine.shell("tapster status")
        assert identities(machine) == before
    assert machine.shell("cat /etc/tapster/tapster.toml") == settings
    assert machine.is_active("tapster-disks.target")
