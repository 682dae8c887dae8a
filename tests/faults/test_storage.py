"""The storage under an image fails: the guest is told so by its device, the disk stays, and nothing else is harmed."""

import errno
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harm import fill, free, fuse_folder, small_disk, write_through
from tests.workbench import PATIENCE, Bench, loop_disk, tap_disk

MAKES = pytest.mark.parametrize("make", [loop_disk, tap_disk], ids=["loop", "tap"])
Make = Callable[[str, Path], str]


def assert_others_go_on(bench: Bench) -> None:
    bench.push_disks("other", loop_disk("vda", bench.image("o1.img")), tap_disk("vdb", bench.image("o2.img")))
    bench.until_guest("other", "Up")


def look_until_it_has_an_error(bench: Bench) -> None:
    """Look again and again: for a while the kernel knows the file's attributes without asking who serves it."""
    deadline = time.monotonic() + PATIENCE
    while not bench.disk("vm1", "vda")["error"]:
        assert time.monotonic() < deadline, "the loss of the storage was not told"
        bench.resync()
        time.sleep(0.2)


@MAKES
def test_a_full_disk_under_an_image_fails_the_write_and_goes_on_when_there_is_room(bench: Bench, make: Make) -> None:
    with small_disk(bench.elsewhere, "size=2m") as folder:
        image = folder / "a.img"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        bench.push_disks("vm1", make("vda", image))
        up = bench.until_phase("vm1", "vda", "Up")
        ballast = fill(folder)
        with pytest.raises(OSError, match=r"error|space"):
            write_through(bench.stable("vm1", "vda"), b"x" * (1 << 20))
        bench.resync()
        assert_others_go_on(bench)
        assert (bench.disk("vm1", "vda")["phase"], bench.disk("vm1", "vda")["diskseq"]) == ("Up", up["diskseq"])
        free(ballast)
        write_through(bench.stable("vm1", "vda"), b"y" * (1 << 20))
        assert image.read_bytes()[: 1 << 20] == b"y" * (1 << 20)
        bench.absent("vm1")
        bench.until_phase("vm1", "vda", "Down")


@MAKES
def test_failing_writes_reach_the_guest_and_leave_the_disk_up(bench: Bench, make: Make) -> None:
    with fuse_folder(bench.elsewhere, 8 << 20, failing_writes=True) as storage:
        image = storage.image
        bench.push_disks("vm1", make("vda", image))
        up = bench.until_phase("vm1", "vda", "Up")
        with pytest.raises(OSError, match="error") as failure:
            write_through(bench.stable("vm1", "vda"), b"x" * (1 << 20))
        assert failure.value.errno == errno.EIO
        bench.resync()
        assert_others_go_on(bench)
        assert (bench.disk("vm1", "vda")["phase"], bench.disk("vm1", "vda")["diskseq"]) == ("Up", up["diskseq"])
        bench.absent("vm1")
        bench.until_phase("vm1", "vda", "Down")


def test_storage_that_is_gone_is_told_and_the_disk_comes_up_on_it_when_it_is_back(bench: Bench) -> None:
    with fuse_folder(bench.elsewhere, 8 << 20) as storage:
        image = storage.image
        bench.push_disks("vm1", tap_disk("vda", image))
        bench.until_phase("vm1", "vda", "Up")
        storage.die()
        look_until_it_has_an_error(bench)
        assert bench.disk("vm1", "vda")["phase"] == "Degraded", str(bench.disk("vm1", "vda"))
        assert_others_go_on(bench)
        storage.clear()
        storage.serve()
        bench.until_phase("vm1", "vda", "Up")
        write_through(bench.stable("vm1", "vda"), b"y" * (1 << 20))
        assert image.read_bytes()[: 1 << 20] == b"y" * (1 << 20)
        bench.absent("vm1")
        bench.until_phase("vm1", "vda", "Down")
