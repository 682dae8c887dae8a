"""Removing the package leaves disks up; purging it takes them down only when told to, and never one in use."""

from tests.system.machine import IMAGES, PATIENCE, Machine
from tests.system.writer import writing
from tests.workbench import domain, loop_disk, tap_disk

APT = "DEBIAN_FRONTEND=noninteractive apt-get -q -y"
AGREE = "echo 'tapster tapster/take-disks-down boolean true' | debconf-set-selections"


def test_removing_leaves_disks_up_and_installing_again_takes_them_over(machine: Machine) -> None:
    machine.push("vm1", loop_disk("vda", machine.image("a.raw", "8M")), tap_disk("vdb", machine.image("b.raw", "8M")))
    before = machine.disks()
    with writing(machine, "vm1", "vda", "vdb"):
        machine.shell(f"{APT} remove tapster")
        assert not machine.shell("command -v tapster || true")
        assert machine.shell("cat /etc/tapster/tapster.toml"), "settings stay until the purge"
        machine.shell(f"{APT} install /root/tapster_*.deb")
        machine.in_step()
        for name, disk in machine.disks().items():
            assert (disk["phase"], disk["diskseq"]) == ("Up", before[name]["diskseq"])


def test_a_purge_that_is_not_told_to_take_disks_down_leaves_them(machine: Machine) -> None:
    machine.push("vm1", loop_disk("vda", machine.image("a.raw", "8M")))
    with writing(machine, "vm1", "vda"):
        machine.shell(f"{APT} remove tapster")
        assert "take-disks-down" in machine.shell("debconf-show tapster"), (
            "the question is known when it is to be asked"
        )
        machine.shell(f"{APT} purge tapster")
    assert machine.shell("ls /etc/tapster /var/lib/tapster 2>/dev/null || true").split() == [
        "/var/lib/tapster:",
        "images",
    ]
    assert machine.shell(f"ls {IMAGES}").split() == ["a.raw"]


def test_a_purge_that_is_told_to_takes_down_what_nobody_uses(machine: Machine) -> None:
    images = [machine.image(f"{name}.raw", "8M") for name in "abc"]
    machine.push("vm1", loop_disk("vda", images[0]), tap_disk("vdb", images[1]), loop_disk("vdc", images[2]))
    devices = {name: disk["device_path"] for name, disk in machine.disks().items()}
    machine.shell(AGREE)
    with writing(machine, "vm1", "vdc"):
        machine.shell(f"{APT} purge tapster")
        assert machine.shell("ls /run/tapster/disks/vm1").split() == ["vdc"]
    bound = machine.shell("losetup --noheadings --output NAME").split()
    assert devices["vm1/vdc"] in bound
    assert not machine.shell("pgrep qemu-storage || true")
    assert machine.shell(f"ls {IMAGES}").split() == ["a.raw", "b.raw", "c.raw"]


def test_settings_that_were_deleted_keep_nobody_from_removing(machine: Machine) -> None:
    """The defaults count without them, for the agent and for the purge."""
    machine.write("/root/vm1.xml", domain("vm1", loop_disk("vda", machine.image("a.raw", "8M"))))
    machine.shell(f"{AGREE}; rm /etc/tapster/tapster.toml; systemctl restart tapster")
    machine.shell("tapster push --wait /root/vm1.xml")
    machine.shell(f"{APT} remove tapster")
    assert "vm1/vda is down" in machine.shell(f"{APT} purge tapster 2>&1")
    assert machine.shell("find /run/tapster/disks -type l 2>/dev/null || true") == ""


def test_a_purge_asks_a_person_and_does_what_is_answered(machine: Machine) -> None:
    machine.push("asked", loop_disk("vda", machine.image("a.raw", "8M")), tap_disk("vdb", machine.image("b.raw", "8M")))
    purge = "DEBIAN_FRONTEND=readline apt-get -q -y purge tapster"
    asking = machine.start("script", "--quiet", "--return", f"--command={purge}", "/dev/null")
    assert asking.stdin
    assert asking.stdout
    said = ""
    while "[yes/no]" not in said:
        more = asking.stdout.read(1)
        assert more, said
        said += more
    asking.stdin.write("yes\n")
    asking.stdin.flush()
    said += asking.communicate(timeout=PATIENCE)[0]
    assert "Take down the disks of guests that are up?" in said
    assert "tapster: asked/vda is down" in said
    assert "tapster: asked/vdb is down" in said
    assert machine.shell("find /run/tapster/disks -type l 2>/dev/null || true") == ""
