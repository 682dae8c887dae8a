"""Definitions that change under their disks: what was meant happens, and nothing that is in doubt."""

import os
import signal
import subprocess
import time

import pytest

from tests.workbench import Bench, domain, loop_disk, tap_disk


def up_with(host: Bench, guest: str, target: str, **fields: object) -> None:
    def holds() -> bool:
        disk = host.disk(guest, target)
        return disk.get("phase") == "Up" and all(disk[name] == value for name, value in fields.items())

    host.until(holds)


def test_a_target_that_is_removed_goes_and_is_forgotten(host: Bench) -> None:
    disks = [loop_disk("vda", host.image("gone.a")), tap_disk("vdb", host.image("gone.b"))]
    host.push_disks("gone", *disks)
    host.until_guest("gone", "Up")
    host.push_disks("gone", disks[0])
    host.until(lambda: [disk["target"] for disk in host.statuses["gone"]["disks"]] == ["vda"])
    assert not host.stable("gone", "vdb").is_symlink()
    host.push("gone", domain("gone"))
    host.until(lambda: host.statuses["gone"]["disks"] == [])
    assert not host.stable("gone", "vda").parent.exists()


def test_a_target_that_is_removed_stays_while_another_disk_has_an_error(host: Bench) -> None:
    disks = [loop_disk("vda", host.image("doubt.a")), loop_disk("vdb", host.image("doubt.b"))]
    host.push_disks("doubt", *disks)
    before = host.until_guest("doubt", "Up")["disks"][1]
    no_target = f"<disk type='file'><source file='{host.images}/doubt.b'/></disk>"
    host.push_disks("doubt", disks[0], no_target)
    kept = host.until_phase("doubt", "vdb", "Refused")
    assert kept["error"]["reason"] == "IncompleteDefinition"
    assert kept["diskseq"] == before["diskseq"]
    assert host.stable("doubt", "vdb").is_block_device()
    host.push_disks("doubt", disks[0])
    host.until(lambda: not host.disk("doubt", "vdb"))


def test_a_target_is_renamed(host: Bench) -> None:
    image = host.image("renamed.img")
    host.push_disks("renamed", loop_disk("vda", image))
    host.until_phase("renamed", "vda", "Up")
    host.push_disks("renamed", loop_disk("sda", image))
    host.until_phase("renamed", "sda", "Up")
    host.until(lambda: not host.disk("renamed", "vda"))
    assert [path.name for path in host.stable("renamed", "sda").parent.iterdir()] == ["sda"]


def test_a_source_is_changed(host: Bench) -> None:
    old, new = host.image("source.old"), host.image("source.new", 2 << 20)
    for disk in (loop_disk, tap_disk):
        host.push_disks("source", disk("vda", old))
        up_with(host, "source", "vda", source=str(old), size_bytes=1 << 20)
        host.push_disks("source", disk("vda", new))
        up_with(host, "source", "vda", source=str(new), size_bytes=2 << 20)


def test_a_source_changed_to_one_that_another_guest_has_keeps_the_disk(host: Bench) -> None:
    theirs, ours = host.image("theirs.img"), host.image("ours.img")
    host.push_disks("has-it", loop_disk("vda", theirs))
    host.until_phase("has-it", "vda", "Up")
    host.push_disks("wants-it", loop_disk("vda", ours))
    before = host.until_phase("wants-it", "vda", "Up")
    host.push_disks("wants-it", loop_disk("vda", theirs))
    host.until(lambda: (host.disk("wants-it", "vda").get("error") or {}).get("reason") == "SourceInUse")
    assert host.disk("wants-it", "vda")["diskseq"] == before["diskseq"]
    host.absent("has-it")
    up_with(host, "wants-it", "vda", source=str(theirs))


def test_a_disk_that_waits_for_another_image_and_loses_its_device_leaves_nothing_behind(host: Bench) -> None:
    """Its server would hold an image that nobody asked for, and its link would name whoever gets the number next."""
    one, other = host.formatted("waits.a", "qcow2"), host.formatted("waits.b", "qcow2")
    host.push_disks("waiter", tap_disk("vda", one, "qcow2"))
    host.push_disks("owner", tap_disk("vda", other, "qcow2"))
    host.until_guest("waiter", "Up")
    host.until_guest("owner", "Up")
    host.push_disks("waiter", tap_disk("vda", other, "qcow2"))
    refused = host.until_phase("waiter", "vda", "Refused")
    server = refused["effective"]["tap"]["process_id"]
    subprocess.run(["losetup", "-d", refused["device_path"]], check=True)
    host.until_status("waiter", "vda", phase="Refused", device_path=None)
    host.until(lambda: server not in host.servers())
    assert not host.stable("waiter", "vda").is_symlink()
    host.absent("owner")
    host.until_guest("waiter", "Up")


def test_two_disks_change_places(host: Bench) -> None:
    first, second = host.image("swap.a", 1 << 20), host.image("swap.b", 2 << 20)
    host.push_disks("swap", loop_disk("vda", first), loop_disk("vdb", second))
    host.until_guest("swap", "Up")
    host.push_disks("swap", loop_disk("vda", second), loop_disk("vdb", first))
    up_with(host, "swap", "vda", size_bytes=2 << 20)
    up_with(host, "swap", "vdb", size_bytes=1 << 20)


def test_a_backend_is_changed_there_and_back(host: Bench) -> None:
    image = host.image("backend.img")
    for disk, backend in ((loop_disk, "loop"), (tap_disk, "blktap"), (loop_disk, "loop")):
        host.push_disks("backend", disk("vda", image))
        host.until(
            lambda backend=backend: (  # type: ignore[misc]
                host.disk("backend", "vda").get("phase") == "Up"
                and host.disk("backend", "vda")["effective"]["backend"] == backend
            )
        )
        device = host.disk("backend", "vda")["device_path"]
        assert str(host.stable("backend", "vda").readlink()) == device


@pytest.mark.parametrize("disk", [loop_disk, tap_disk])
def test_read_only_is_turned_on_and_off(host: Bench, disk: object) -> None:
    make, guest = (loop_disk, "flip-loop") if disk is loop_disk else (tap_disk, "flip-tap")
    image = host.image(f"{guest}.img")
    for more, read_only in (("", False), ("<readonly/>", True), ("", False)):
        host.push_disks(guest, make("vda", image, more=more))
        up_with(host, guest, "vda", read_only=read_only)
        mode = os.O_RDONLY if read_only else os.O_RDWR
        os.close(os.open(host.stable(guest, "vda"), mode))


def test_a_change_waits_for_whoever_has_the_disk(host: Bench) -> None:
    old, new = host.image("held.old"), host.image("held.new", 2 << 20)
    host.push_disks("held", loop_disk("vda", old))
    before = host.until_phase("held", "vda", "Up")
    with host.stable("held", "vda").open("rb"):
        host.push_disks("held", loop_disk("vda", new))
        kept = host.until_phase("held", "vda", "InUse")
        assert kept["diskseq"] == before["diskseq"]
        assert f"(pid {os.getpid()})" in kept["error"]["message"]
        # The operator thinks better of it: all is well again, and nothing was touched.
        host.push_disks("held", loop_disk("vda", old))
        assert host.until_phase("held", "vda", "Up")["diskseq"] == before["diskseq"]
        host.push_disks("held", loop_disk("vda", new))
        host.until_phase("held", "vda", "InUse")
    up_with(host, "held", "vda", size_bytes=2 << 20)


def test_a_cdrom_is_emptied_and_filled(host: Bench) -> None:
    image = host.image("medium.iso")
    drive = "<disk type='file' device='cdrom'>{}<target dev='hda'/></disk>"
    source = f"<source file='{image}'/>"
    for content in (source, "", source):
        host.push_disks("medium", drive.format(content))
        up_with(host, "medium", "hda", source=str(image) if content else None)
        host.until(lambda content=content: host.stable("medium", "hda").is_symlink() is bool(content))  # type: ignore[misc]


def test_absent_while_refused_and_present_while_going(host: Bench) -> None:
    image = host.images / "flapping.img"
    for generation in range(1, 20, 2):
        host.push("flapping", domain("flapping", loop_disk("vda", image)), generation=str(generation))
        host.absent("flapping", generation + 1)
        if generation == 9:
            host.image("flapping.img")
    host.until(lambda: host.statuses.get("flapping", {}).get("observed_generation") == 20)
    host.until_guest("flapping", "Down")
    host.until(lambda: not host.stable("flapping", "vda").is_symlink())
    host.push("flapping", domain("flapping", loop_disk("vda", image)), generation="21")
    host.until_phase("flapping", "vda", "Up")


def group(host: Bench, name: str, guest: str, document: str | bytes) -> None:
    host.publish(f"tapster/v1/test/groups/{name}/desired/guests/{guest}", document)


def test_a_group_document_counts_until_the_host_has_its_own(host: Bench) -> None:
    guest = f"grouped-{host.host}"
    for_all, own = host.image("for-all.img"), host.image("own.img", 2 << 20)
    group(host, "all", guest, domain(guest, loop_disk("vda", for_all)))
    up_with(host, guest, "vda", source=str(for_all))
    host.push_disks(guest, loop_disk("vda", own))
    up_with(host, guest, "vda", source=str(own))
    # What the group says now is on record and does not count.
    group(host, "all", guest, domain(guest))
    host.until(lambda: len([e for e in host.events("tapster.guest.accepted") if e["data"]["guest"] == guest]) == 3)
    assert host.disk(guest, "vda")["source"] == str(own)
    group(host, "elsewhere", guest, domain(guest))
    group(host, "all", guest, b"")
    host.absent(guest)
    host.until_guest(guest, "Down")


def test_a_stopped_tap_holds_up_no_other_disk(host: Bench) -> None:
    servers = set(host.servers())
    host.push_disks("stopped", tap_disk("vda", host.image("stopped.img")))
    host.until_phase("stopped", "vda", "Up")
    pid = (set(host.servers()) - servers).pop()
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(1.1)  # until then the kernel answers for the tap, from what it remembers of the export
        host.absent("stopped")
        host.resync()
        image, opened = host.image("not-held-up.img"), host.image("not-held-up.tap")
        with opened.open("rb"):  # somebody reads it, so it must be looked at who has it
            host.push_disks("not-held-up", loop_disk("vda", image), tap_disk("vdb", opened))
            host.until_guest("not-held-up", "Up")
        host.absent("not-held-up")
        host.until_guest("not-held-up", "Down")
    finally:
        os.kill(pid, signal.SIGCONT)
    host.until_guest("stopped", "Down")


def test_a_stopped_tap_holds_up_no_start(bench: Bench) -> None:
    bench.push_disks("stopped", tap_disk("vda", bench.image("stopped.img")))
    bench.push_disks("other", loop_disk("vda", bench.image("other.img")))
    bench.until_guest("stopped", "Up")
    bench.until_guest("other", "Up")
    [pid] = bench.servers()
    os.kill(pid, signal.SIGSTOP)
    try:
        bench.statuses.clear()
        bench.restart(signal.SIGKILL)
        bench.until_guest("other", "Up")
    finally:
        os.kill(pid, signal.SIGCONT)
    bench.until_guest("stopped", "Up")
    assert bench.servers() == [pid]
