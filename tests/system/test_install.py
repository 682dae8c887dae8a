"""The package on a booted Debian: what apt, dpkg and systemd make of it."""

from tests.system.machine import Machine
from tests.workbench import loop_disk, tap_disk


def test_the_service_is_up_after_installing_and_after_each_boot(machine: Machine) -> None:
    shown = machine.show("tapster.service", "ActiveState", "SubState", "UnitFileState", "StatusText", "NRestarts")
    assert shown == {
        "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled", "NRestarts": "0",
        "StatusText": "0 guests; disks: none",
    }  # fmt: skip
    assert machine.show("tapster-disks.target", "ActiveState") == {"ActiveState": "active"}
    assert machine.shell("systemctl --failed --no-legend") == ""


def test_a_guest_of_each_backend_comes_up(machine: Machine) -> None:
    raw, qcow2 = machine.image("a.raw"), machine.image("b.qcow2", fmt="qcow2")
    machine.push("vm1", loop_disk("vda", raw), tap_disk("vdb", qcow2, "qcow2"))
    assert {name: disk["phase"] for name, disk in machine.disks().items()} == {"vm1/vda": "Up", "vm1/vdb": "Up"}
    size = machine.shell("blockdev --getsize64 /run/tapster/disks/vm1/vda /run/tapster/disks/vm1/vdb")
    assert size.split() == ["67108864"] * 2
