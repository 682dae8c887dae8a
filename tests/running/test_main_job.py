"""The main job on real parts: documents in over MQTT, disks up through their backends, status out."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.faults.harm import small_disk
from tests.workbench import Bench, loop_disk, tap_disk
from tests.workbench import bench as running_bench

FORMATS = [("aio", "raw"), ("qcow", "qcow"), ("qcow2", "qcow2"), ("vhd", "vpc"), ("vmdk", "vmdk")]


def write(path: Path, data: bytes) -> None:
    """Write through a block device and have it reach the image."""
    with path.open("r+b", buffering=0) as device:
        device.write(data)
        os.fsync(device.fileno())


def test_three_backends_and_an_empty_cdrom_come_up(bench: Bench) -> None:
    disks = [
        loop_disk("vda", bench.image("a.img")),
        tap_disk("vdb", bench.image("b.img")),
        tap_disk("vdc", bench.formatted("c.qcow", "qcow"), "qcow"),
        "<disk type='file' device='cdrom'><target dev='hda'/></disk>",
    ]
    bench.push_disks("vm1", *disks)
    status = bench.until_guest("vm1", "Up")
    effective = {disk["target"]: disk["effective"] and disk["effective"]["backend"] for disk in status["disks"]}
    assert effective == {"vda": "loop", "vdb": "blktap", "vdc": "blktap", "hda": None}
    assert bench.disk("vm1", "vda")["stable_path"] == str(bench.stable("vm1", "vda"))
    assert str(bench.stable("vm1", "vda").readlink()) == bench.disk("vm1", "vda")["device_path"]
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    bench.assert_clean()


@pytest.mark.parametrize(("fmt", "qemu"), FORMATS)
def test_data_written_through_a_tap_is_in_the_image(bench: Bench, fmt: str, qemu: str) -> None:
    image = bench.formatted(f"d.{fmt}", qemu)
    pattern = os.urandom(1 << 20)
    bench.push_disks("vm1", tap_disk("vda", image, fmt))
    bench.until_phase("vm1", "vda", "Up")
    write(bench.stable("vm1", "vda"), pattern)
    bench.absent("vm1")
    bench.until_phase("vm1", "vda", "Down")
    raw = bench.folder / "raw"
    subprocess.run(["qemu-img", "convert", "-f", qemu, "-O", "raw", image, raw], check=True)
    assert raw.read_bytes()[: len(pattern)] == pattern


def test_data_written_through_loop_is_in_the_image(bench: Bench) -> None:
    image, pattern = bench.image("a.img"), os.urandom(1 << 16)
    bench.push_disks("vm1", loop_disk("vda", image))
    bench.until_phase("vm1", "vda", "Up")
    write(bench.stable("vm1", "vda"), pattern)
    assert image.read_bytes()[: len(pattern)] == pattern


def test_a_read_only_disk_refuses_writes(bench: Bench) -> None:
    image = bench.image("a.img")
    bench.push_disks(
        "vm1", loop_disk("vda", image, "<readonly/>"), tap_disk("vdb", bench.image("b"), "aio", "<readonly/>")
    )
    bench.until_guest("vm1", "Up")
    for target in ("vda", "vdb"):
        assert bench.disk("vm1", target)["read_only"] is True
        with pytest.raises(OSError, match=r"Operation not permitted|Read-only|Permission denied"):
            write(bench.stable("vm1", target), b"x" * 512)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_restart_adopts_every_disk_and_touches_none(bench: Bench, number: signal.Signals) -> None:
    disks = [loop_disk("vda", bench.image("a.img")), tap_disk("vdb", bench.formatted("b.qcow2", "qcow2"), "qcow2")]
    bench.push_disks("vm1", *disks)
    before = bench.until_guest("vm1", "Up")
    with bench.stable("vm1", "vda").open("rb"), bench.stable("vm1", "vdb").open("rb"):
        servers = bench.servers()
        bench.statuses.clear()
        bench.restart(number)
        after = bench.until_guest("vm1", "Up")
    identity = ("target", "device_path", "diskseq", "stable_path", "effective")
    assert [[disk[name] for name in identity] for disk in after["disks"]] == [
        [disk[name] for name in identity] for disk in before["disks"]
    ]
    assert bench.servers() == servers
    assert not [line for line in bench.log_lines()[-40:] if line.get("step") in {"attach", "replace"}][2:]


def test_a_clean_stop_says_farewell_and_leaves_disks_up(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    bench.until_guest("vm1", "Up")
    assert bench.stop() == 0
    bench.until(lambda: any(b'"offline"' in payload for topic, payload in bench.messages if topic.endswith("/agent")))
    assert len(bench.loops()) == 1
    bench.start()


def test_a_disk_in_use_is_not_taken_away(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")), tap_disk("vdb", bench.image("b.img")))
    bench.until_guest("vm1", "Up")
    with bench.stable("vm1", "vda").open("rb"), bench.stable("vm1", "vdb").open("rb"):
        bench.absent("vm1")
        for target in ("vda", "vdb"):
            disk = bench.until_phase("vm1", target, "InUse")
            assert os.getpid() in {holder["pid"] for holder in disk["in_use"]["processes"]}
            assert f"(pid {os.getpid()})" in disk["error"]["message"]
            assert disk["next_retry"]
            assert str(bench.stable("vm1", target).readlink()) == disk["device_path"]
        assert len(bench.loops()) == 2
    bench.until_guest("vm1", "Down")
    bench.assert_clean()


@pytest.fixture
def hard_links(host_parts: None, broker: Broker) -> Iterator[Bench]:
    with running_bench("[images]\nhard_links = true", broker=broker) as host:
        yield host


def test_two_guests_on_one_image_and_the_second_is_told_who_has_it(hard_links: Bench) -> None:
    bench = hard_links
    image = bench.image("a.img")
    bench.push_disks("vm1", loop_disk("vda", image))
    bench.until_guest("vm1", "Up")
    hard_link = bench.images / "other-name.img"
    hard_link.hardlink_to(image)
    for guest, disk in (
        ("vm2", loop_disk("vda", image)),
        ("vm3", loop_disk("vda", hard_link)),
        ("vm4", tap_disk("vda", hard_link)),
    ):
        bench.push_disks(guest, disk)
        refused = bench.until_phase(guest, "vda", "Refused")
        assert refused["error"]["reason"] == "SourceInUse"
        assert "vm1/vda" in refused["error"]["message"]
    assert len(bench.loops()) == 1
    bench.absent("vm1")
    bench.until(lambda: "Up" in [bench.statuses[guest]["phase"] for guest in ("vm2", "vm3", "vm4")])


def test_an_image_that_a_qemu_process_has_is_refused_and_the_process_named(bench: Bench) -> None:
    image = bench.image("a.img")
    holder = subprocess.Popen(["qemu-io", "-f", "raw", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdin
        holder.stdin.write(b"write 0 512\n")
        holder.stdin.flush()
        assert holder.stdout
        holder.stdout.readline()
        bench.push_disks("vm1", loop_disk("vda", image))
        refused = bench.until_phase("vm1", "vda", "Refused")
        assert refused["error"]["reason"] == "SourceInUse"
        assert f"qemu-io (pid {holder.pid})" in refused["error"]["message"]
    finally:
        holder.kill()
        holder.wait()
    bench.until_phase("vm1", "vda", "Up")
    command = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(image)]
    denied = subprocess.run(command, check=False, capture_output=True, text=True)
    assert 'Failed to get "write" lock' in denied.stderr


def test_a_killed_tap_is_reported_lost_and_rebuilt_when_let_go(bench: Bench) -> None:
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    up = bench.until_phase("vm1", "vda", "Up")
    with bench.stable("vm1", "vda").open("rb"):
        os.kill(bench.servers()[0], signal.SIGKILL)
        lost = bench.until_phase("vm1", "vda", "Lost")
        assert lost["error"]["reason"] == "DeviceInUse"
        assert not bench.stable("vm1", "vda").is_symlink()
    again = bench.until_phase("vm1", "vda", "Up")
    assert again["diskseq"] != up["diskseq"]
    assert len(bench.loops()) == len(bench.servers()) == len(bench.mounts()) == 1


def test_a_device_detached_behind_our_back_is_up_again_by_an_event(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    up = bench.until_phase("vm1", "vda", "Up")
    subprocess.run(["losetup", "-d", up["device_path"]], check=True)
    bench.until(lambda: bench.disk("vm1", "vda").get("diskseq") not in {None, up["diskseq"]})

    def causes() -> list[str]:
        told = [event["data"] for event in bench.events("tapster.disk.phase")]
        return [event["cause"] for event in told if event["phase"] == "Up"]

    bench.until(lambda: causes() == ["document", "kernel"])
    assert bench.disk("vm1", "vda")["phase"] == "Up"


def test_an_image_that_appears_grows_or_is_replaced_is_noticed(slow_bench: Bench) -> None:
    bench = slow_bench
    path = bench.images / "late.img"
    bench.push_disks("vm1", loop_disk("vda", path))
    assert bench.until_phase("vm1", "vda", "Refused")["error"]["reason"] == "ImageMissing"
    bench.image("late.img", 1 << 20)
    up = bench.until_phase("vm1", "vda", "Up")
    with bench.stable("vm1", "vda").open("rb"):
        os.truncate(path, 2 << 20)
        bench.until(lambda: bench.disk("vm1", "vda")["size_bytes"] == 2 << 20)
        assert bench.disk("vm1", "vda")["diskseq"] == up["diskseq"]
        os.truncate(path, 1 << 20)
        shrunk = bench.until_phase("vm1", "vda", "Degraded")
        assert (shrunk["error"]["reason"], shrunk["size_bytes"]) == ("ImageShrunk", 2 << 20)
        bench.image("new.img", 3 << 20).rename(path)
        assert bench.until_phase("vm1", "vda", "InUse")["size_bytes"] == 2 << 20
    bench.until(lambda: bench.disk("vm1", "vda")["size_bytes"] == 3 << 20)


def test_a_disk_is_taken_down_when_it_is_let_go_of(slow_bench: Bench) -> None:
    bench = slow_bench
    bench.push_disks("vm1", loop_disk("vda", bench.formatted("a.img", "raw")))
    bench.until_phase("vm1", "vda", "Up")
    subprocess.run(["mkfs.ext4", "-q", bench.stable("vm1", "vda")], check=True)
    mount = bench.folder / "mount"
    mount.mkdir()
    subprocess.run(["mount", bench.stable("vm1", "vda"), mount], check=True)
    try:
        bench.absent("vm1")
        assert f"mounted on {mount}" in bench.until_phase("vm1", "vda", "InUse")["error"]["message"]
        for number in range(5):  # the mounts of others are none of its business
            elsewhere = bench.folder / str(number)
            elsewhere.mkdir()
            with small_disk(elsewhere):
                bench.push_disks(f"other{number}", loop_disk("vda", bench.image(f"{number}.img")))
                bench.until_guest(f"other{number}", "Up")
        # An agent beside us may have the device open for a moment, to look at it, and closing it counts.
        assert bench.disk("vm1", "vda")["attempts"] < 5
    finally:
        subprocess.run(["umount", mount], check=True)
    bench.until_phase("vm1", "vda", "Down")


def test_a_refused_image_is_looked_at_again_when_it_was_written_and_not_before(slow_bench: Bench) -> None:
    bench = slow_bench
    image = bench.image("a.img")
    bench.push_disks("vm1", tap_disk("vda", image, "qcow2"))
    bench.until_phase("vm1", "vda", "Refused")
    for number in range(5):  # time for our own looking to set off another look, and so on
        bench.push_disks(f"other{number}", loop_disk("vda", bench.image(f"{number}.img")))
        bench.until_guest(f"other{number}", "Up")
    refused = bench.disk("vm1", "vda")
    assert (refused["error"]["reason"], refused["attempts"]) == ("FormatMismatch", 1)
    image.write_bytes(bench.formatted("b.qcow2", "qcow2").read_bytes())
    bench.until_phase("vm1", "vda", "Up")
