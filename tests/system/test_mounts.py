"""The agent has mounts of its own, and the pools of its disks are the host's all the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.machine import Machine
from tests.workbench import loop_disk, tap_disk

POOL = Path("/mnt/pool")


def mount_pool(machine: Machine) -> None:
    """A file system of its own, which is told to no other tree of mounts."""
    machine.shell(f"mkdir -p {POOL}; mount -t tmpfs -o size=32M pool {POOL}; mount --make-private {POOL}")


def is_busy(machine: Machine) -> bool:
    done = machine.run("umount", str(POOL), check=False)
    assert not done.returncode or "target is busy" in done.stderr
    return done.returncode != 0


@pytest.mark.parametrize("disk", [loop_disk, tap_disk])
def test_a_pool_can_not_be_unmounted_below_disks_whatever_becomes_of_the_agent(
    machine: Machine, disk: Callable[..., str]
) -> None:
    machine.configure(f'[images]\npools = ["{POOL}"]\n')
    machine.shell("systemctl restart tapster")
    mount_pool(machine)
    machine.run("qemu-img", "create", "-q", f"{POOL}/a.raw", "8M")
    machine.push("vm1", disk("vda", POOL / "a.raw"))
    assert is_busy(machine)
    machine.shell("systemctl restart tapster")
    machine.in_step()
    assert is_busy(machine)
    machine.shell("systemctl stop tapster")
    assert is_busy(machine)
    machine.shell("systemctl start tapster")
    machine.in_step()
    machine.run("tapster", "absent", "vm1", "--wait")
    assert not is_busy(machine), "nothing of the agent keeps it"


def test_a_device_that_the_host_has_mounted_is_in_use_until_it_is_unmounted(machine: Machine) -> None:
    image = machine.image("a.raw", "8M")
    machine.push("vm1", loop_disk("vda", image))
    machine.shell(
        f"mke2fs -q /run/tapster/disks/vm1/vda; mkdir {POOL}; mount --make-private /run;"
        f"mount /run/tapster/disks/vm1/vda {POOL}; mount --make-private {POOL}"
    )
    machine.run("tapster", "absent", "vm1")
    machine.until(lambda: machine.disks()["vm1/vda"]["phase"] == "InUse", "it is held")
    assert f"mounted on {POOL}" in str(machine.disks()["vm1/vda"])
    machine.shell(f"umount {POOL}")
    machine.until(lambda: machine.disks()["vm1/vda"]["phase"] == "Down", "it is let go")


def test_the_agent_writes_in_its_own_folders_alone(machine: Machine) -> None:
    pid = machine.show("tapster.service", "MainPID")["MainPID"]
    inside = f"nsenter --target={pid} --mount --wd=/ --"
    for folder in ("/usr", "/etc", "/srv", "/sys/fs/cgroup"):
        said = machine.run("sh", "-c", f"{inside} touch {folder}/mine", check=False).stderr
        assert "Read-only file system" in said, folder
    machine.shell(f"{inside} touch /run/tapster/mine /var/lib/tapster/mine")
    assert machine.shell(f"touch /root/mine; {inside} ls -A /root || true") == ""
