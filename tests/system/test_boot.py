"""Boot and reboot: the disks are there before whatever starts guests, with a broker or without."""

from tests.system.machine import Machine
from tests.workbench import loop_disk, tap_disk

GUESTS_UNIT = """\
[Unit]
Description=stands for what starts guests at boot
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /root/start-guests /root/seen
[Install]
WantedBy=multi-user.target
"""
START_GUESTS = """\
for disk in /run/tapster/disks/vm1/*; do
    dd if=$disk bs=4k count=1 iflag=direct status=none | wc -c
done >$1
"""
DISKS = 12


def test_all_disks_are_up_before_guests_start_without_a_broker(machine: Machine) -> None:
    disks = [loop_disk(f"vd{letter}", machine.image(f"{letter}.raw")) for letter in "abcdef"]
    disks += [tap_disk(f"vd{letter}", machine.image(f"{letter}.qcow2", fmt="qcow2"), "qcow2") for letter in "ghijkl"]
    machine.push("vm1", *disks)
    machine.write("/root/start-guests", START_GUESTS)
    for unit in ("libvirt-guests.service", "xendomains.service"):
        machine.write(f"/etc/systemd/system/{unit}", GUESTS_UNIT.replace("/root/seen", f"/root/seen-by-{unit}"))
        machine.shell(f"systemctl -q enable {unit}")
    machine.shell("systemctl -q disable mosquitto")
    machine.reboot()
    assert not machine.is_active("mosquitto.service")
    for unit in ("libvirt-guests.service", "xendomains.service"):
        assert machine.shell(f"cat /root/seen-by-{unit}").split() == ["4096"] * DISKS
    assert machine.show("tapster.service", "StatusText") == {"StatusText": f"1 guests; disks: {DISKS} Up"}


def test_a_power_failure_loses_no_guest(machine: Machine) -> None:
    machine.push("vm1", loop_disk("vda", machine.image("a.raw")), tap_disk("vdb", machine.image("b.raw")))
    machine.pull_the_plug()
    machine.detach_loops()
    machine.boot()
    machine.in_step()
    assert {disk["phase"] for disk in machine.disks().values()} == {"Up"}
