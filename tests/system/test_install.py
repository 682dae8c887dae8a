"""The package on a booted Debian: what apt, dpkg and systemd make of it."""

import subprocess
from pathlib import Path

from tests.system.conftest import Packages
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


def test_the_guides_are_readable_and_certificates_can_be_made_with_what_the_package_has(
    packages: Packages, tmp_path: Path
) -> None:
    """Looked at unpacked, since the machine leaves /usr/share/doc out."""
    subprocess.run(["dpkg-deb", "--extract", packages.current, tmp_path], check=True)
    unit = (tmp_path / "lib/systemd/system/tapster.service").read_text()
    (named,) = (line.removeprefix("Documentation=file:/") for line in unit.splitlines() if "Documentation=" in line)
    guides = tmp_path / "usr/share/doc/tapster"
    assert tmp_path / named == guides / "README.md"
    for name in ("README.md", "OPERATING.md", "broker/hosts.acl"):
        assert (guides / name).read_text()
    subprocess.run([guides / "broker/make-certificates", tmp_path / "ca", "authorities"], check=True)
