"""What the kernel itself holds the agent to, by programs of BPF that systemd loads for its control group."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine, booted
from tests.workbench import loop_disk, tap_disk

DENIED = ("systemd-run", "--wait", "--quiet", "-p", "DevicePolicy=closed", "head", "-c0", "/dev/kmsg")
REACH = "import socket; socket.create_connection(('127.0.0.1', 1883), 3)"


@pytest.fixture(scope="module")
def enforcing(installed_root: Path, base_root: Path) -> Iterator[Machine]:
    """A machine that may load them, with this kernel's log and two disks of a guest."""
    with booted([installed_root, base_root], options=["--system-call-filter=bpf", "--bind=/dev/kmsg"]) as machine:
        if not machine.run(*DENIED, check=False).returncode:
            pytest.skip("systemd can load no such programs here")
        machine.push("vm1", loop_disk("vda", machine.image("a.raw")), tap_disk("vdb", machine.image("b.raw")))
        yield machine


def opened(machine: Machine, path: str) -> str:
    """What a program in the agent's control group is told that opens a file; nothing if it may."""
    cgroup = machine.show("tapster.service", "ControlGroup")["ControlGroup"]
    enter = f'echo $$ >"/sys/fs/cgroup{cgroup}/cgroup.procs"; exec head -c0 "{path}"'
    return machine.run("sh", "-c", enter, check=False).stderr


def test_the_agent_may_open_devices_of_disks_alone(enforcing: Machine) -> None:
    devices = [disk["device_path"] for disk in enforcing.disks().values()]
    assert len(devices) == 2
    for allowed in ("/dev/null", "/dev/loop-control", "/dev/fuse", *devices):
        assert opened(enforcing, allowed) == ""
    assert "Operation not permitted" in opened(enforcing, "/dev/kmsg")


def test_the_kernels_log_is_handed_over(enforcing: Machine) -> None:
    pid = enforcing.show("tapster.service", "MainPID")["MainPID"]
    enforcing.until(
        lambda: "1:b" in enforcing.shell(f"stat -L -c %t:%T /proc/{pid}/fd/* || true").split(), "the agent has it"
    )


def test_packets_go_by_what_was_opened_for_the_agent_alone(enforcing: Machine) -> None:
    """The connection to the broker is there; another one of the agent's would have its packets dropped."""
    enforcing.in_step()
    assert enforcing.run("python3", "-c", REACH, check=False).returncode == 0
    denied = ("systemd-run", "--wait", "--quiet", "-p", "IPAddressDeny=any", "python3", "-c", REACH)
    assert enforcing.run(*denied, check=False).returncode != 0
    assert set(enforcing.show("tapster.service", "IPAddressDeny")["IPAddressDeny"].split()) == {"::/0", "0.0.0.0/0"}
