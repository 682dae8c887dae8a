"""The file system under a loop device dies, and the kernel no longer says whose the device is: ours stays ours.

Of such a device neither tag nor backing file can be asked, and sysfs shows `/` where its mount was taken out of the
tree, which a server that ends in order does itself.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.harm import fuse_folder
from tests.workbench import Bench, loop_disk, tap_disk

CACHED_SECONDS = 1.2
"""The kernel answers for so long from what it knows of a FUSE file; only then is the device's tag out of reach."""


def end_the_server_in_order(bench: Bench) -> None:
    [server] = bench.servers()
    os.kill(server, signal.SIGTERM)
    bench.until(lambda: not bench.servers())
    time.sleep(CACHED_SECONDS)


def backing(device: Path) -> str:
    return Path("/sys/block", device.name, "loop/backing_file").read_text().strip()


@contextmanager
def in_use(device: Path) -> Iterator[None]:
    with device.open("rb", buffering=0):
        yield


def until_rebuilt(bench: Bench, before: int) -> None:
    bench.until(lambda: bench.disk("vm1", "vda")["diskseq"] not in {None, before})
    bench.until_phase("vm1", "vda", "Up")
    assert [device.diskseq for device in bench.loops()] == [bench.disk("vm1", "vda")["diskseq"]]
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    bench.assert_clean()


def test_a_used_disk_whose_server_ended_in_order_is_known_and_goes_when_it_is_let_go(bench: Bench) -> None:
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    before = bench.until_phase("vm1", "vda", "Up")
    device = bench.stable("vm1", "vda").readlink()
    with in_use(device):
        end_the_server_in_order(bench)
        assert backing(device) == "/"
        bench.resync()
        lost = bench.until_phase("vm1", "vda", "Lost")
        assert (lost["device_path"], lost["diskseq"]) == (str(device), before["diskseq"])
    until_rebuilt(bench, before["diskseq"])


def test_an_agent_that_was_killed_meanwhile_knows_it_too(bench: Bench) -> None:
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    before = bench.until_phase("vm1", "vda", "Up")
    device = bench.stable("vm1", "vda").readlink()
    bench.stop(signal.SIGKILL)
    with in_use(device):
        end_the_server_in_order(bench)
        assert backing(device) == "/"
        bench.statuses.clear()
        bench.start()
        lost = bench.until_phase("vm1", "vda", "Lost")
        assert (lost["device_path"], lost["diskseq"]) == (str(device), before["diskseq"])
    until_rebuilt(bench, before["diskseq"])


def test_a_loop_disk_over_a_dead_mount_is_lost_and_rebuilt_when_it_is_there_again(bench: Bench) -> None:
    with fuse_folder(bench.elsewhere, 1 << 20) as storage:
        bench.push_disks("vm1", loop_disk("vda", storage.image))
        before = bench.until_phase("vm1", "vda", "Up")
        device = bench.stable("vm1", "vda").readlink()
        with in_use(device):
            storage.die()
            with device.open("rb", buffering=0) as guest, pytest.raises(OSError, match="Input/output error"):
                guest.read(4096)  # of which the kernel's log tells, if the agent may read it
            if not os.access("/dev/kmsg", os.R_OK):
                time.sleep(CACHED_SECONDS)
                bench.resync()
            lost = bench.until_phase("vm1", "vda", "Lost")
            assert lost["error"]["reason"] == "StorageLost"
            assert (lost["device_path"], lost["diskseq"]) == (str(device), before["diskseq"])
            storage.clear()
            storage.serve()
            bench.resync()
            bench.until(lambda: bench.disk("vm1", "vda")["error"]["reason"] == "DeviceInUse")
            assert bench.disk("vm1", "vda")["phase"] == "Lost"
        until_rebuilt(bench, before["diskseq"])


def test_a_loop_disk_over_a_dead_mount_is_taken_down(bench: Bench) -> None:
    with fuse_folder(bench.elsewhere, 1 << 20) as storage:
        bench.push_disks("vm1", loop_disk("vda", storage.image))
        bench.until_phase("vm1", "vda", "Up")
        storage.die()
        time.sleep(CACHED_SECONDS)
        bench.absent("vm1")
        bench.until_guest("vm1", "Down")
        bench.assert_clean()
