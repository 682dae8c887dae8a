"""A host is lost; a copy of its store makes a fresh one go on where it was, with no broker to ask."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.machine import FLEET, IMAGES, Machine, booted
from tests.system.writer import writing
from tests.workbench import loop_disk, tap_disk

KEPT = ("srv", IMAGES.lstrip("/"))
ALL_UP = {"StatusText": "1 guests; disks: 2 Up"}

BACK_UP = """\
systemctl stop tapster
cp -a /var/lib/tapster/store.sqlite /srv/
systemctl start tapster
"""
# What a snapshot of the file system has: both files as they are at one moment, while the agent runs.
SNAPSHOT = """\
agent=$(systemctl show --property=MainPID --value tapster)
mkdir /srv/snapshot
kill -STOP $agent
cp -a /var/lib/tapster/store.sqlite* /srv/snapshot/
kill -CONT $agent
"""
RESTORE = """\
systemctl stop tapster
rm -f /var/lib/tapster/store.sqlite*
cp -a {place}/store.sqlite* /var/lib/tapster/
systemctl start tapster
"""


@dataclass(frozen=True)
class Safe:
    """What outlives a host: its name, and copies of some of its folders."""

    host: str
    files: Path


@pytest.fixture(scope="module")
def safe(installed_root: Path, base_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Safe:
    """The store in both kinds of copy, and the images as the power failure left them, after three generations."""
    files = tmp_path_factory.mktemp("safe")
    with booted([installed_root, base_root]) as lost:
        disks = [loop_disk("vda", lost.image("a.raw", "8M")), tap_disk("vdb", lost.image("b.raw", "8M"))]
        for wanted in (disks[:1], disks[1:], disks):
            lost.push("vm1", *wanted)
        with writing(lost, "vm1", "vda", "vdb"):
            lost.shell(BACK_UP)
            lost.in_step()
            lost.push("vm1", *disks)  # so that something is in the log beside the file
            lost.shell(SNAPSHOT)
            assert lost.shell("ls /srv/snapshot").split() == ["store.sqlite", "store.sqlite-wal"]
        lost.pull_the_plug()
        for part in KEPT:
            shutil.copytree(lost.root / part, files / part)
    return Safe(lost.name, files)


@pytest.mark.parametrize(("place", "has"), [("/srv", 3), ("/srv/snapshot", 4)])
def test_a_fresh_host_goes_on_from_a_copy(machine: Machine, safe: Safe, place: str, has: int) -> None:
    machine.name = safe.host
    machine.configure()
    for part in KEPT:
        shutil.copytree(safe.files / part, machine.root / part, dirs_exist_ok=True)
    machine.shell("systemctl stop mosquitto")
    machine.shell(RESTORE.format(place=place))
    assert machine.show("tapster.service", "StatusText") == ALL_UP
    for target, image in (("vda", "a.raw"), ("vdb", "b.raw")):
        machine.shell(f"cmp /run/tapster/disks/vm1/{target} {IMAGES}/{image}")

    # The broker has lost everything, too. Somebody has an old document.
    machine.shell("systemctl start mosquitto")
    document = json.dumps({"guest": "vm1", "generation": has - 1, "state": "absent"})
    topic = f"tapster/v1/{FLEET}/hosts/{machine.name}/desired/guests/vm1"
    machine.run("mosquitto_pub", "-V", "5", "-q", "1", "-r", "-t", topic, "-m", document)
    machine.until(lambda: verdict(machine) == ("False", "StaleGeneration"), "what is older than the copy is stale")
    assert {disk["phase"] for disk in machine.disks().values()} == {"Up"}
    machine.run("tapster", "absent", "--wait", "vm1")
    assert machine.shell("find /run/tapster/disks -type l") == ""


def verdict(machine: Machine) -> tuple[str, str] | None:
    """Whether the guest's newest document counts, and why."""
    guests = json.loads(machine.run("tapster", "status", "--output=json", check=False).stdout or "[]")
    conditions = [condition for guest in guests for condition in guest["conditions"]]
    return next(((each["status"], each["reason"]) for each in conditions if each["type"] == "Accepted"), None)
