"""What a server says of its own accord reaches the status: an image found corrupt, an export that somebody took away.

The agent of these tests hardly looks by itself, so what it notices it was told of.
"""

import asyncio
import os
import signal
import struct
import subprocess
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from tests.workbench import Bench, tap_disk

CLUSTER = 65536


def corrupt(image: Path) -> None:
    """Let the second cluster of the disk be where the image keeps its refcounts: a write to it would destroy them."""
    with image.open("r+b") as file:
        file.seek(40)  # l1_table_offset (docs/interop/qcow2.txt)
        (l1_table,) = struct.unpack(">Q", file.read(8))
        file.seek(l1_table)
        l2_table = struct.unpack(">Q", file.read(8))[0] & 0x00FF_FFFF_FFFF_FE00
        file.seek(l2_table + 8)
        file.write(struct.pack(">Q", 1 << 63 | CLUSTER))


def damaged_image(bench: Bench, name: str) -> Path:
    image = bench.formatted(name, "qcow2")
    write = ["qemu-io", "-f", "qcow2", "-c", f"write -P 7 0 {CLUSTER}", str(image)]
    subprocess.run(write, check=True, capture_output=True)
    corrupt(image)
    return image


def meet_the_damage(bench: Bench) -> None:
    fd = os.open(bench.stable("vm1", "vda"), os.O_WRONLY)
    try:
        os.pwrite(fd, b"x" * 4096, CLUSTER)
        with pytest.raises(OSError, match="Input/output"):
            os.fsync(fd)
    finally:
        os.close(fd)


def until_damage_is_told(bench: Bench) -> None:
    error = bench.until_phase("vm1", "vda", "Degraded")["error"]
    assert error["reason"] == "ImageDamaged"
    assert "overlaps with refcount" in error["message"] or "is ejected" in error["message"]


def test_an_image_that_its_server_finds_corrupt_is_told_of(slow_bench: Bench) -> None:
    bench = slow_bench
    image = damaged_image(bench, "a.qcow2")
    bench.push_disks("vm1", tap_disk("vda", image, "qcow2"), tap_disk("vdb", bench.image("b.img")))
    bench.until_guest("vm1", "Up")
    servers = bench.servers()
    meet_the_damage(bench)
    until_damage_is_told(bench)
    assert bench.disk("vm1", "vdb")["phase"] == "Up"
    bench.restart()
    until_damage_is_told(bench)
    assert bench.servers() == servers
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", image], check=False, capture_output=True)
    bench.push_disks("vm1", tap_disk("vda", image, "qcow2"))
    bench.until_phase("vm1", "vda", "Up")


def test_damage_that_was_found_while_no_agent_ran_is_told_of(slow_bench: Bench) -> None:
    bench = slow_bench
    bench.push_disks("vm1", tap_disk("vda", damaged_image(bench, "a.qcow2"), "qcow2"))
    bench.until_guest("vm1", "Up")
    bench.stop(signal.SIGKILL)
    bench.statuses.clear()
    meet_the_damage(bench)
    bench.start()
    until_damage_is_told(bench)


def test_an_export_that_somebody_took_away_is_made_again(slow_bench: Bench) -> None:
    bench = slow_bench
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    before = bench.until_phase("vm1", "vda", "Up")
    [server] = bench.servers()
    asyncio.run(take_export_away(bench))
    bench.until(lambda: bench.disk("vm1", "vda")["diskseq"] not in {None, before["diskseq"]})
    bench.until_phase("vm1", "vda", "Up")
    assert server not in bench.servers()
    with bench.stable("vm1", "vda").open("r+b", buffering=0) as device:
        device.write(b"x" * 4096)
        os.fsync(device.fileno())
    assert (bench.images / "a.img").read_bytes()[:4096] == b"x" * 4096


def test_a_device_whose_export_is_gone_can_not_be_found_any_more(slow_bench: Bench) -> None:
    bench = slow_bench
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    bench.until_phase("vm1", "vda", "Up")
    with bench.stable("vm1", "vda").open("rb"):
        asyncio.run(take_export_away(bench))
        assert bench.until_phase("vm1", "vda", "Lost")["error"]["reason"] == "DeviceInUse"
        assert bench.servers()
        assert not bench.stable("vm1", "vda").is_symlink()
    bench.until_phase("vm1", "vda", "Up")


async def take_export_away(bench: Bench) -> None:
    [tap] = bench.runtime.glob("taps/*")
    client = QMPClient()
    await client.connect(str(tap / "qmp.sock"))
    await client.execute("block-export-del", {"id": "disk", "mode": "hard"})
    await client.disconnect()
