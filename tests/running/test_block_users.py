"""Who has a block device is found, however they have it, and nobody is given it beside them."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.running.test_block import (
    MakeDevice,
    absent,
    block_disk,
    detach,
    make_device,
    reason,
    refused,
    take_down,
    tap_on_device,
)
from tests.workbench import Bench

__all__ = ["make_device"]

MIB = 1 << 20


DRIVERS = {"loop": "name='loop'", "tap": "name='tap2' type='aio'"}


def sliced(path: str | Path, offset: int, size: int, *, more: str = "", driver: str = "loop") -> str:
    part = f"<slices><slice type='storage' offset='{offset}' size='{size}'/></slices>"
    source = f"<source dev='{path}'>{part}</source>"
    return f"<disk type='block'><driver {DRIVERS[driver]}/>{source}<target dev='vda'/>{more}</disk>"


def slice_of(_target: str, path: str | Path) -> str:
    return sliced(path, MIB, 4 * MIB)


def taken(host: Bench, guest: str, by: str) -> None:
    host.until(lambda: reason(host, guest) == "SourceInUse")
    assert by in host.disk(guest, "vda")["error"]["message"]


@pytest.fixture
def partition(host: Bench, make_device: MakeDevice) -> Iterator[tuple[str, str]]:
    """A device and its partition."""
    device = make_device("whole")
    subprocess.run(["sfdisk", "-q", "--no-reread", device], input="2048,8192\n", text=True, check=True)
    subprocess.run(["partx", "-a", device], check=True)
    yield device, f"{device}p1"
    take_down(host)
    subprocess.run(["partx", "-d", device], check=True)


@contextmanager
def strangers_loop(device: str) -> Iterator[str]:
    """A loop device over the device that tapster did not make."""
    command = ["losetup", "--show", "-f", device]
    over = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield over
    finally:
        detach(over)


@contextmanager
def running(device: Path, more: str = "") -> Iterator[None]:
    """A QEMU that has the device as a guest's disk."""
    blockdev, disk = f"driver=host_device,node-name=a,filename={device}", f"virtio-blk-pci,drive=a{more}"
    command = ["qemu-system-x86_64", "-S", "-display", "none", "-monitor", "stdio"]
    command += ["-blockdev", blockdev, "-device", disk]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        try:
            assert qemu.stdout
            assert "monitor" in qemu.stdout.readline()
            yield
        finally:
            qemu.terminate()


def test_a_slice_of_a_device_rests_once_it_is_up(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("sliced")
    host.push_disks("sliced", sliced(device, MIB, 4 * MIB, more="<readonly/>"))
    up = host.until_phase("sliced", "vda", "Up")
    assert (up["effective"]["backend"], up["size_bytes"]) == ("loop", 4 * MIB)
    host.restart()
    host.statuses.clear()
    host.resync()
    again = host.until_phase("sliced", "vda", "Up")
    assert again["diskseq"] == up["diskseq"]
    host.push_disks("sliced", sliced(device, 2 * MIB, 4 * MIB))
    host.until_status("sliced", "vda", phase="Up", read_only=False)
    absent(host, "sliced")


SLICE_AND_DEVICE = [(slice_of, block_disk), (slice_of, tap_on_device), (block_disk, slice_of)]


@pytest.mark.parametrize(("first", "second"), SLICE_AND_DEVICE)
def test_who_has_a_slice_has_the_device(
    host: Bench, make_device: MakeDevice, first: Callable[..., str], second: Callable[..., str]
) -> None:
    device = make_device("part")
    host.push_disks("part-a", first("vda", device))
    host.until_phase("part-a", "vda", "Up")
    host.push_disks("part-b", second("vda", device))
    assert "part-a/vda" in refused(host, "part-b")
    absent(host, "part-a")
    host.until_phase("part-b", "vda", "Up")
    absent(host, "part-b")


@pytest.mark.parametrize("disk", [block_disk, tap_on_device, slice_of])
def test_a_device_under_a_loop_device_of_somebody_elses_is_refused(
    host: Bench, make_device: MakeDevice, disk: Callable[..., str]
) -> None:
    device = make_device("below")
    with strangers_loop(device) as over:
        host.push_disks("below", disk("vda", device))
        assert over in refused(host, "below")
    host.until_phase("below", "vda", "Up")
    absent(host, "below")


def test_slices_are_shared_by_those_who_say_so(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("slices")
    for guest in ("share-a", "share-b"):
        host.push_disks(guest, sliced(device, MIB, 4 * MIB, more="<shareable/>"))
        host.until_phase(guest, "vda", "Up")
    host.push_disks("share-c", block_disk("vda", device, "<shareable/>"))
    host.until_phase("share-c", "vda", "Up")
    host.push_disks("share-d", block_disk("vda", device))
    refused(host, "share-d")
    absent(host, "share-a", "share-b", "share-c")
    host.until_phase("share-d", "vda", "Up")
    absent(host, "share-d")


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("offset", "size"), [(15 * MIB, 2 * MIB), (16 * MIB, MIB), (MIB, 256)])
def test_a_slice_that_the_image_has_not_is_refused(host: Bench, driver: str, offset: int, size: int) -> None:
    image = host.image("short.img", 16 * MIB)
    host.push_disks("short", sliced(image, offset, size, driver=driver))
    assert f"from byte {offset} on" in refused(host, "short", "ImageTooSmall")
    absent(host, "short")


@pytest.mark.parametrize("disk", [block_disk, tap_on_device])
@pytest.mark.parametrize("whole_first", [True, False])
def test_a_disk_and_its_partition_are_one(
    host: Bench, partition: tuple[str, str], whole_first: bool, disk: Callable[..., str]
) -> None:
    one, other = partition if whole_first else partition[::-1]
    host.push_disks("first", disk("vda", one))
    host.until_phase("first", "vda", "Up")
    host.push_disks("second", block_disk("vda", other))
    assert f"first/vda, which has {one};" in refused(host, "second")
    absent(host, "first")
    host.until_phase("second", "vda", "Up")
    absent(host, "second")


def test_two_partitions_of_a_disk_are_two(host: Bench, partition: tuple[str, str]) -> None:
    device, one = partition
    subprocess.run(["sfdisk", "-q", "--no-reread", "-a", device], input="10240,8192\n", text=True, check=True)
    subprocess.run(["partx", "-a", "-n", "2", device], check=True)
    for guest, path in (("first", one), ("second", f"{device}p2")):
        host.push_disks(guest, block_disk("vda", path))
        host.until_phase(guest, "vda", "Up")
    absent(host, "first", "second")


def test_a_device_that_a_guest_runs_on_is_not_let_go(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("runs")
    host.push_disks("runs", block_disk("vda", device))
    host.until_phase("runs", "vda", "Up")
    with running(host.stable("runs", "vda")):
        host.absent("runs")
        host.until_phase("runs", "vda", "InUse")
        assert "qemu-system" in host.disk("runs", "vda")["error"]["message"]
        assert str(host.stable("runs", "vda").readlink()) == device
        host.push_disks("next", block_disk("vda", device))
        assert "runs/vda" in refused(host, "next")
    host.until_guest("runs", "Down")
    host.until_phase("next", "vda", "Up")
    absent(host, "next")


@pytest.mark.parametrize("disk", [block_disk, tap_on_device])
def test_a_device_that_somebody_elses_guest_runs_on_is_refused(
    host: Bench, make_device: MakeDevice, disk: Callable[..., str]
) -> None:
    device = make_device("foreign")
    with running(Path(device)):
        host.push_disks("foreign", disk("vda", device))
        assert "qemu-system" in refused(host, "foreign")
    host.until_phase("foreign", "vda", "Up")
    absent(host, "foreign")


def test_guests_run_on_what_they_share(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("cluster")
    host.push_disks("cluster-a", block_disk("vda", device, "<shareable/>"))
    host.until_phase("cluster-a", "vda", "Up")
    with running(host.stable("cluster-a", "vda"), ",share-rw=on"):
        host.push_disks("cluster-b", block_disk("vda", device, "<shareable/>"))
        host.until_phase("cluster-b", "vda", "Up")
        with running(host.stable("cluster-b", "vda"), ",share-rw=on"):
            absent(host, "cluster-b")
    absent(host, "cluster-a")


def test_what_reads_beside_a_tap_comes_and_goes(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("readers")
    for guest, disk in (("tap", tap_on_device), ("block", block_disk)):
        host.push_disks(guest, disk("vda", device).replace("</disk>", "<readonly/></disk>"))
        host.until_phase(guest, "vda", "Up")
    absent(host, "block", "tap")


def test_a_disk_that_is_to_write_after_all_lets_no_reader_in(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("turns")
    host.push_disks("turns", block_disk("vda", device, "<readonly/>"))
    host.until_phase("turns", "vda", "Up")
    host.push_disks("reads", block_disk("vda", device, "<readonly/>"))
    host.until_phase("reads", "vda", "Up")
    host.push_disks("turns", block_disk("vda", device))
    taken(host, "turns", "reads/vda")
    absent(host, "reads")
    host.until_phase("turns", "vda", "Up")
    host.push_disks("reads", block_disk("vda", device, "<readonly/>"))
    assert "turns/vda" in refused(host, "reads")
    host.push_disks("turns", block_disk("vda", device, "<readonly/>"))
    host.until_phase("reads", "vda", "Up")
    absent(host, "turns", "reads")
