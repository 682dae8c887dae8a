"""The role in deploy/ansible: clean by its linter, and run by ssh against a booted Debian with a broker behind TLS."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import NEWER, Packages
from tests.system.machine import CHECKOUT, Machine, booted
from tests.system.writer import writing
from tests.workbench import domain, loop_disk, tap_disk

PROGRAMS = CHECKOUT / ".cache/ansible/bin"
ROLE = CHECKOUT / "deploy/ansible"
OPERATOR = """\
fleet = "system"
[broker]
host = "localhost"
port = 8884
[broker.tls]
ca_file = "/root/operator/ca.pem"
cert_file = "/root/operator/operator.pem"
key_file = "/root/operator/operator.key"
"""

pytestmark = pytest.mark.skipif(not PROGRAMS.exists(), reason="run deploy/test --system once, which installs Ansible")


def ansible(program: str, *words: str | Path, succeeds: bool = True) -> str:
    environment = os.environ | {
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "ANSIBLE_NOCOLOR": "1",
        # A connection that is kept would still be there when the machine is switched off. systemd stops what runs, and
        # nsenter(1) stops itself with its child: then nobody reaps that, and the machine's namespace can't end.
        "ANSIBLE_SSH_ARGS": "-o ControlMaster=no",
    }
    done = subprocess.run(
        [PROGRAMS / program, *words], cwd=ROLE, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) is succeeds, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_the_linter_finds_nothing() -> None:
    ansible("ansible-lint", "--offline", "--strict", ".")


def certificates(folder: Path, host: str) -> None:
    program = CHECKOUT / "deploy/broker/make-certificates"
    for words in (["authorities"], ["broker", "localhost"], ["host", host], ["operator", "alice"]):
        subprocess.run([program, folder, *words], check=True, capture_output=True)


def give_it_a_broker(machine: Machine, made: Path) -> None:
    subprocess.run(["cp", "-r", made / "mosquitto", machine.root / "etc/mosquitto/tapster"], check=True)
    subprocess.run(["cp", "-r", made / "operators/alice", machine.root / "root/operator"], check=True)
    machine.write("/root/operator.toml", OPERATOR)
    machine.shell(
        "chown -R mosquitto /etc/mosquitto/tapster; cp /mnt/checkout/deploy/broker/mosquitto.conf"
        " /etc/mosquitto/conf.d/tapster.conf; systemctl restart mosquitto"
    )


def inventory(machine: Machine, folder: Path) -> Path:
    """By ssh to an sshd that talks over its standard input, since the machine has no network."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    machine.write("/root/.ssh/authorized_keys", (folder / "key.pub").read_text())
    machine.shell("chmod 700 /root/.ssh; mkdir -p /run/sshd")
    proxy = shlex.join([*machine.entrance(), "/usr/sbin/sshd", "-i"])
    ways = f'-o ProxyCommand="{proxy}" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null'
    host = {
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(folder / "key"),
        "ansible_ssh_common_args": ways,
        "ansible_python_interpreter": "/usr/bin/python3",
        "tapster_fleet": "system",
        "tapster_labels": {"site": "ams", "rack": "12"},
        "tapster_certificates": str(folder / "ca/hosts"),
        "tapster_settings": {"broker": {"host": "localhost", "port": 8883}},
    }
    file = folder / "inventory.json"
    file.write_text(json.dumps({"tapster": {"hosts": {machine.name: host}}}))
    return file


def play(hosts: Path, package: Path, *words: str, succeeds: bool = True) -> str:
    package_is = f"tapster_package={package}"
    return ansible("ansible-playbook", "-i", hosts, "-e", package_is, *words, "site.yml", succeeds=succeeds)


def test_install_upgrade_and_nothing_to_do(base_root: Path, packages: Packages, tmp_path: Path) -> None:
    with booted([base_root]) as machine:
        certificates(tmp_path / "ca", machine.name)
        give_it_a_broker(machine, tmp_path / "ca")
        hosts = inventory(machine, tmp_path)

        play(hosts, packages.current)
        machine.in_step()
        assert machine.shell("stat -c %a /etc/tapster/host.key").strip() == "600"
        assert f'host = "{machine.name}"' in machine.shell("cat /etc/tapster/tapster.toml")
        machine.write("/root/vm1.xml", domain("vm1", loop_disk("vda", machine.image("a.raw", "8M")),
                                              tap_disk("vdb", machine.image("b.raw", "8M"))))  # fmt: skip
        to_it = f"--config /root/operator.toml --host {machine.name}"
        machine.shell(f"tapster push --wait {to_it} /root/vm1.xml")
        assert '"site": "ams"' in machine.shell(f"tapster get hosts {to_it} --output json || true")

        with writing(machine, "vm1", "vda", "vdb"):
            said = play(hosts, packages.newer)
            assert "2 disks are up." in said
            machine.in_step()
            assert f"tapster {NEWER}" in machine.shell("tapster status --config /root/operator.toml")
        assert "changed=0" in play(hosts, packages.newer)

        wrong = json.dumps({"tapster_settings": {"broker": {"hots": "localhost"}}})
        assert "did you mean broker.host?" in play(hosts, packages.newer, "-e", wrong, succeeds=False)
        assert "changed=0" not in play(hosts, packages.newer)
        machine.in_step()
