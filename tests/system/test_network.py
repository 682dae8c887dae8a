"""The agent has no network: what it needs of it is opened next door, and disks of an agent that had one stay up."""

from tests.system.machine import Machine
from tests.system.older import UNCONFINED
from tests.system.test_agent_comes_and_goes import TARGETS, bring_up, identities
from tests.system.writer import writing

METRICS = "127.0.0.1:9477"
SOCKETS = ("tapster-network.socket", "tapster-nbd.socket")


def agent_in(machine: Machine, namespace: str) -> str:
    pid = machine.show("tapster.service", "MainPID")["MainPID"]
    return machine.shell(f"readlink /proc/{pid}/ns/{namespace}")


def reaches(machine: Machine, address: str, *, like: str) -> bool:
    """Whether a program in the network of the process `like` reaches a port of the loopback."""
    host, port = address.split(":")
    script = f"import socket; socket.create_connection(({host!r}, {port}), 10)"
    return machine.run("nsenter", f"--target={like}", "--net", "python3", "-c", script, check=False).returncode == 0


def test_the_broker_and_the_metrics_are_reached_without_a_network(machine: Machine) -> None:
    machine.configure(f'[metrics]\nlisten = "{METRICS}"\n[broker]\nreconnect_max = 1\n')
    machine.shell("systemctl restart tapster")
    machine.in_step()
    pid = machine.show("tapster.service", "MainPID")["MainPID"]
    for address in (METRICS, "127.0.0.1:1883"):
        machine.until(lambda address=address: reaches(machine, address, like="1"), f"{address} answers")  # type: ignore[misc]
        assert not reaches(machine, address, like=pid)
    machine.shell("systemctl stop mosquitto")
    journal = ("journalctl", "--boot", "--unit=tapster", "--output=cat", "--no-pager")
    why = "cannot reach the broker at 127.0.0.1:1883: [Errno 111] Connection refused"
    machine.until(lambda: why in machine.run(*journal).stdout, "it says why")
    machine.shell("systemctl start mosquitto; systemctl restart tapster")
    machine.in_step()


def test_what_the_agent_is_given_goes_with_it(machine: Machine) -> None:
    """A socket that stayed could start an agent that somebody has stopped."""
    assert all(machine.is_active(unit) for unit in SOCKETS)
    machine.shell("systemctl stop tapster")
    assert not any(machine.is_active(unit) for unit in SOCKETS)
    machine.shell("systemctl start tapster")
    assert all(machine.is_active(unit) for unit in SOCKETS)


def test_disks_of_an_agent_with_the_hosts_mounts_and_network_are_taken_over(machine: Machine) -> None:
    drop_in = "/etc/systemd/system/tapster.service.d/older.conf"
    machine.write(drop_in, UNCONFINED)
    machine.shell("systemctl daemon-reload; systemctl restart tapster")
    for namespace in ("mnt", "net"):
        assert agent_in(machine, namespace) == machine.shell(f"readlink /proc/1/ns/{namespace}")
    bring_up(machine)
    before = identities(machine)
    with writing(machine, "vm1", *TARGETS):
        for act in (f"mv {drop_in} /root", f"mv /root/older.conf {drop_in}"):
            machine.shell(f"{act}; systemctl daemon-reload; systemctl restart tapster")
            machine.in_step()
            assert identities(machine) == before
