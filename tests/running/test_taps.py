"""Taps over FUSE: every format both ways, large images, big sectors, flushes, and servers that keep dying."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from reconcilers.blktap.crashes import MOST
from tests.workbench import Bench, tap_disk

MIB = 1 << 20
FORMATS = [
    ("aio", "raw"),
    ("qcow", "qcow"),
    ("qcow2", "qcow2"),
    ("qed", "qed"),
    ("vdi", "vdi"),
    ("vhd", "vpc"),
    ("vhdx", "vhdx"),
    ("vmdk", "vmdk"),
]


def write(path: Path, data: bytes, offset: int = 0) -> None:
    """Write through a device, and flush."""
    with path.open("r+b", buffering=0) as device:
        os.pwrite(device.fileno(), data, offset)
        os.fsync(device.fileno())


@pytest.mark.parametrize(("fmt", "qemu"), FORMATS)
def test_every_format_both_ways(bench: Bench, fmt: str, qemu: str) -> None:
    """What qemu-img wrote is what the device reads, and what the device was written is what qemu-img reads."""
    before, image = bench.images / "before.raw", bench.images / "image"
    before.write_bytes(os.urandom(MIB) + bytes(6 * MIB) + os.urandom(MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", qemu, before, image], check=True)
    bench.push_disks("vm1", tap_disk("vda", image, fmt))
    bench.until_phase("vm1", "vda", "Up")
    device = bench.stable("vm1", "vda")
    assert device.read_bytes()[: 8 * MIB] == before.read_bytes()
    changed = os.urandom(3 * MIB)
    write(device, changed, 2 * MIB - 512)
    bench.absent("vm1")
    bench.until_phase("vm1", "vda", "Down")
    with before.open("r+b") as file:
        os.pwrite(file.fileno(), changed, 2 * MIB - 512)
    compared = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", qemu, before, image], capture_output=True, text=True, check=False
    )
    assert compared.returncode == 0, compared.stdout


@pytest.mark.parametrize(("fmt", "qemu"), [("aio", "raw"), ("qcow2", "qcow2"), ("vhdx", "vhdx")])
def test_more_than_two_tib_in_sectors_of_four_kib(bench: Bench, fmt: str, qemu: str) -> None:
    size, data = 3 << 40, os.urandom(4096)
    image = bench.formatted("image", qemu, size)
    bench.push_disks("vm1", tap_disk("vda", image, fmt, "<blockio logical_block_size='4096'/>"))
    up = bench.until_phase("vm1", "vda", "Up")
    assert (up["size_bytes"], up["logical_block_size"]) == (size, 4096)
    write(bench.stable("vm1", "vda"), data, size - 4096)
    bench.absent("vm1")
    bench.until_phase("vm1", "vda", "Down")
    read = ["qemu-img", "dd", "-f", qemu, "-O", "raw", "bs=4096", f"skip={size // 4096 - 1}"]
    last = bench.folder / "last"
    subprocess.run([*read, f"if={image}", f"of={last}"], check=True)
    assert last.read_bytes() == data


@pytest.mark.parametrize(("fmt", "qemu"), [("aio", "raw"), ("qcow2", "qcow2"), ("vhd", "vpc")])
def test_what_was_flushed_is_in_the_image_when_all_is_killed(bench: Bench, fmt: str, qemu: str) -> None:
    """Server and agent at one blow: no one of them is asked to write anything any more."""
    image, data = bench.formatted("image", qemu), os.urandom(MIB)
    bench.push_disks("vm1", tap_disk("vda", image, fmt))
    bench.until_phase("vm1", "vda", "Up")
    write(bench.stable("vm1", "vda"), data)
    servers = bench.servers()
    bench.stop(signal.SIGKILL)
    for server in servers:
        os.kill(server, signal.SIGKILL)
    bench.until(lambda: bench.servers() == [])
    raw = bench.folder / "raw"
    subprocess.run(["qemu-img", "convert", "-U", "-f", qemu, "-O", "raw", image, raw], check=True)
    assert raw.read_bytes()[:MIB] == data
    bench.start()
    bench.wait_synced()
    bench.until(lambda: bench.servers() not in ([], servers))


def test_the_status_says_how_a_tap_serves(bench: Bench) -> None:
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    tap = bench.until_phase("vm1", "vda", "Up")["effective"]["tap"]
    (server,) = bench.servers()
    assert (tap["server"], tap["device"], tap["process_id"]) == ("storage-daemon", "fuse-loop", server)
    assert tap["flushes"] is True
    assert Path(tap["export"]) in bench.mounts()


def test_a_server_that_dies_again_and_again_is_given_up_and_says_why(bench: Bench) -> None:
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    bench.until_phase("vm1", "vda", "Up")
    killed: set[int] = set()

    def kill_another() -> bool:
        disk = bench.disk("vm1", "vda")
        server = disk["effective"]["tap"]["process_id"] if disk["phase"] == "Up" else None
        if server and server not in killed:
            next(bench.runtime.glob("taps/*/log")).write_text("Assertion `all is well' failed.\n")
            os.kill(server, signal.SIGKILL)
            killed.add(server)
        return len(killed) == MOST

    bench.until(kill_another)
    bench.until(lambda: f"died {MOST} times" in (bench.disk("vm1", "vda").get("error") or {}).get("message", ""))
    failed = bench.disk("vm1", "vda")
    assert (failed["phase"], failed["error"]["reason"]) == ("Failed", "ServerCrashes")
    assert "Assertion `all is well' failed." in failed["error"]["message"]
    assert bench.servers() == []


def test_an_image_that_grows_grows_its_disk_under_its_guest(bench: Bench) -> None:
    """With limits and without holes, each of which is a node of its own in the server."""
    image, path = bench.image("a.img", MIB), bench.stable("vm1", "vda")
    limits = "<iotune><total_iops_sec>5000</total_iops_sec></iotune>"
    driver = "<driver name='tap2' type='aio' discard='ignore'/>"
    bench.push_disks("vm1", f"<disk>{driver}<source file='{image}'/><target dev='vda'/>{limits}</disk>")
    up, before = bench.until_phase("vm1", "vda", "Up"), os.urandom(MIB)
    write(path, before)
    with path.open("r+b", buffering=0) as guest:
        with image.open("ab") as file:
            file.write(appended := os.urandom(MIB))
        bench.until_status("vm1", "vda", size_bytes=2 * MIB)
        assert guest.seek(0, os.SEEK_END) == 2 * MIB
        assert os.pread(guest.fileno(), 2 * MIB, 0) == before + appended
        with image.open("r+b") as file:
            file.truncate(3 * MIB + 100)
        bench.until_status("vm1", "vda", size_bytes=3 * MIB + 512)
        write(path, last := os.urandom(MIB), 2 * MIB)
        with image.open("r+b") as file:
            file.truncate(MIB)
        shrunk = bench.until_phase("vm1", "vda", "Degraded")
        assert (shrunk["error"]["reason"], shrunk["size_bytes"]) == ("ImageShrunk", 3 * MIB + 512)
        with image.open("r+b") as file:
            file.seek(MIB)
            file.write(appended + last + bytes(100))
    assert bench.until_phase("vm1", "vda", "Up")["diskseq"] == up["diskseq"]
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    assert image.read_bytes()[: 3 * MIB] == before + appended + last


def test_what_is_appended_to_an_image_while_its_disk_grows_is_not_cut_off(bench: Bench) -> None:
    image = bench.image("a.img", MIB)
    bench.push_disks("vm1", tap_disk("vda", image))
    bench.until_phase("vm1", "vda", "Up")
    piece = os.urandom(4096)
    with bench.stable("vm1", "vda").open("rb"):
        for _ in range(200):
            with image.open("ab") as file:
                file.write(piece)
        bench.until_status("vm1", "vda", size_bytes=MIB + 200 * 4096, phase="Up")
    assert image.read_bytes() == bytes(MIB) + piece * 200


def test_what_can_not_grow_under_its_guest_grows_when_it_is_let_go(bench: Bench) -> None:
    image = bench.image("a.img", MIB)
    bench.push_disks("vm1", tap_disk("vda", image, "aio", "<readonly/>"))
    bench.until_phase("vm1", "vda", "Up")
    with bench.stable("vm1", "vda").open("rb"):
        with image.open("r+b") as file:
            file.truncate(2 * MIB)
        assert bench.until_phase("vm1", "vda", "InUse")["size_bytes"] == MIB
    bench.until_status("vm1", "vda", size_bytes=2 * MIB, phase="Up")
