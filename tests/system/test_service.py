"""The unit as systemd sees it: clean, watched over, confined as far as its work allows, heard in the journal."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine, booted
from tests.system.writer import writing
from tests.workbench import loop_disk, tap_disk

MOST_EXPOSED = {
    "tapster.service": 2.5,
    "tapster-tap@.service": 1.5,
    "tapster-network@.service": 1.5,
    "tapster-kernel-log@.service": 1.5,
}
"""What `systemd-analyze security` may say of each unit at most, of 10."""

HANGING_CONTROLLER = """\
import asyncio, pathlib
import agent.controller

go_on = agent.controller.Controller._something_to_do

async def hang_while_told_to(self):
    while pathlib.Path("/run/hang").exists():
        await asyncio.sleep(0.1)
    return await go_on(self)

agent.controller.Controller._something_to_do = hang_while_told_to
"""

ONLY_BY_PASSWORD = """\
listener 1883 127.0.0.1
allow_anonymous false
password_file /etc/mosquitto/passwords
"""


@pytest.fixture(scope="module")
def shared(installed_root: Path, base_root: Path) -> Iterator[Machine]:
    """One machine for tests that leave it as it was."""
    with booted([installed_root, base_root]) as machine:
        yield machine


def test_the_units_are_clean(shared: Machine) -> None:
    units = " ".join(f"/lib/systemd/system/tapster*.{kind}" for kind in ("service", "socket", "slice", "target"))
    done = shared.run("sh", "-c", f"systemd-analyze verify {units}", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("unit", "most"), MOST_EXPOSED.items())
def test_units_are_confined_as_far_as_their_work_allows(shared: Machine, unit: str, most: float) -> None:
    done = shared.run("systemd-analyze", "security", "--offline=true", "--no-pager", f"/lib/systemd/system/{unit}")
    (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(level) <= most, done.stdout


def test_the_journal_is_asked_by_guest_and_target(shared: Machine) -> None:
    shared.push("vm1", loop_disk("vda", shared.image("a.raw")), loop_disk("vdb", shared.image("b.raw")))
    entries = [entry for entry in shared.journal("tapster.service") if entry.get("GUEST") == "vm1"]
    assert {entry["TARGET"] for entry in entries if "TARGET" in entry} == {"vda", "vdb"}
    shown = shared.run("journalctl", "GUEST=vm1", "TARGET=vda", "--output=cat", "--no-pager").stdout.splitlines()
    assert "done guest=vm1 target=vda step=attach why=null" in shown
    assert not [line for line in shown if "vdb" in line]
    assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {"tapster"}


def test_doctor_finds_the_service_well(shared: Machine) -> None:
    table = shared.run("tapster", "doctor", check=False).stdout
    assert not [line for line in table.splitlines() if re.match(r"\S.* problem ", line)], table


def test_a_hung_controller_is_restarted_by_the_watchdog_and_disks_stay_up(machine: Machine) -> None:
    machine.configure("step_timeout = 1\n")
    (site,) = machine.root.glob("usr/lib/tapster/lib/python3.*/site-packages")
    (site / "hang.pth").write_text("import hanging_controller\n")
    (site / "hanging_controller.py").write_text(HANGING_CONTROLLER)
    machine.write("/etc/systemd/system/tapster.service.d/soon.conf", "[Service]\nWatchdogSec=4\n")
    machine.shell("systemctl daemon-reload; systemctl restart tapster")
    machine.push("vm1", loop_disk("vda", machine.image("a.raw", "8M")), tap_disk("vdb", machine.image("b.raw", "8M")))
    with writing(machine, "vm1", "vda", "vdb"):
        machine.shell("sleep 6")
        assert machine.show("tapster.service", "NRestarts") == {"NRestarts": "0"}, "it works, and is left alone"

        machine.shell("touch /run/hang")
        # The first is taken up by the controller that waits already, which hangs before it takes the second.
        for guest in ("vm2", "vm3"):
            machine.push(guest, loop_disk("vda", machine.image(f"{guest}.raw")), wait=False)
        machine.until(lambda: machine.show("tapster.service", "NRestarts") != {"NRestarts": "0"}, "it is restarted")
        assert "Watchdog timeout (limit 4s)!" in machine.run("journalctl", "-u", "tapster", "--no-pager").stdout
        machine.shell("rm /run/hang")
        machine.until(lambda: machine.is_active("tapster.service"), "it is ready")
        machine.until(lambda: machine.disks().get("vm3/vda", {}).get("phase") == "Up", "the work goes on")


def test_a_full_disk_under_the_store_takes_nothing_down(machine: Machine) -> None:
    machine.shell("systemctl stop tapster; mount -t tmpfs -o size=4M,mode=711 tmpfs /var/lib/tapster")
    machine.configure("[broker]\nreconnect_max = 1\n")
    machine.shell("mkdir /var/lib/tapster/images; systemctl start tapster")
    machine.push("vm1", loop_disk("vda", machine.image("a.raw")), tap_disk("vdb", machine.image("b.raw")))
    second = machine.image("c.raw")
    before = {name: disk["diskseq"] for name, disk in machine.disks().items()}
    machine.shell("cd /var/lib/tapster/images; dd if=/dev/zero of=filler bs=4k status=none || true")
    machine.push("vm2", loop_disk("vda", second), wait=False)
    journal = ("journalctl", "--boot", "--unit=tapster", "--output=cat", "--no-pager")
    machine.until(lambda: "the store can't be written" in machine.run(*journal).stdout, "the store's trouble is told")
    machine.run("systemctl", "restart", "tapster")
    machine.until(lambda: machine.is_active("tapster.service"), "it is ready")
    assert {name: machine.disks()[name]["diskseq"] for name in before} == before
    machine.shell("rm /var/lib/tapster/images/filler")
    machine.until(lambda: machine.disks().get("vm2/vda", {}).get("phase") == "Up", "the document is taken in")


def test_secrets_come_as_credentials(machine: Machine) -> None:
    machine.shell("install -d -m 700 /etc/credstore; mosquitto_passwd -c -b /etc/mosquitto/passwords host well-kept")
    machine.shell(
        "chown mosquitto /etc/mosquitto/passwords; (umask 077; echo well-kept >/etc/credstore/tapster.password)"
    )
    machine.write("/etc/mosquitto/conf.d/passwords.conf", ONLY_BY_PASSWORD)
    more = '[broker]\nusername = "host"\npassword_file = "{}"\nreconnect_max = 1\n'
    machine.configure(more.format("/run/credentials/tapster.service/tapster.password"))
    machine.shell("systemctl restart mosquitto tapster")
    machine.in_step()
    assert machine.run("tapster", "status", check=False).stdout.startswith("host ")
    machine.configure(more.format("credential:tapster.password"))
    machine.shell("systemctl restart tapster")
    machine.in_step()
    assert machine.run("tapster", "status", check=False).stdout.startswith("host ")
    assert machine.shell("stat -c %a /run/credentials/tapster.service/tapster.password").strip() in {"400", "440"}
    machine.push("vm1", tap_disk("vda", machine.image("a.raw")))
    machine.shell("dd if=/run/tapster/disks/vm1/vda of=/dev/null bs=4k count=1 iflag=direct status=none")
