"""The host's slots for asynchronous I/O run out: disks say so, and come up when the limit is raised."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconcilers.blktap import aio_slots
from tests.tapdisk.host import TapdiskHost
from tests.tapdisk.test_tapdisk import bring_up, take_down
from tests.workbench import tap_disk

LIMIT = Path("/proc/sys/fs/aio-max-nr")


@contextmanager
def few_slots(count: int) -> Iterator[None]:
    """So many more than are taken now, for the whole host, for the length of the block."""
    before = LIMIT.read_text()
    used = int(Path("/proc/sys/fs/aio-nr").read_text())
    try:
        LIMIT.write_text(str(used + count))
    except OSError as error:
        pytest.skip(f"{LIMIT} can't be written here: {error.strerror}")
    try:
        yield
    finally:
        LIMIT.write_text(before)


def assert_told(host: TapdiskHost, target: str) -> None:
    """The disk says what lacks and how it is mended."""
    failed = host.bench.until_phase("vm1", target, "Failed")
    assert failed["error"]["reason"] == "AioSlotsTaken"
    assert aio_slots.RAISE in failed["error"]["message"]


def test_a_tapdisk_that_gets_no_slots_is_told_as_that(tapdisk_host: TapdiskHost) -> None:
    bench = tapdisk_host.bench
    bring_up(tapdisk_host, "aio", bench.image("a.img"))
    with few_slots(aio_slots.OF_A_TAPDISK - 1):
        bench.push_disks("vm1", tap_disk("vda", bench.images / "a.img"), tap_disk("vdb", bench.image("b.img")))
        assert_told(tapdisk_host, "vdb")
        assert bench.disk("vm1", "vda")["phase"] == "Up"
    bench.until_phase("vm1", "vdb", "Up")
    take_down(tapdisk_host)


def test_slots_that_others_took_meanwhile_are_told_of_too(double: TapdiskHost) -> None:
    """tap-ctl says EPERM then, and nothing else."""
    bench = double.bench
    double.misbehave("hang spawn")
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    bench.until(lambda: double.under_way("spawn"))
    with few_slots(aio_slots.OF_A_TAPDISK - 1):
        double.behave()
        assert_told(double, "vda")
    bench.until_phase("vm1", "vda", "Up")
    for left in double.folder.glob("ctl*"):  # as the real one does, whose process id nobody is told
        if int(left.name.removeprefix("ctl")) not in double.tapdisks():
            left.unlink()
    take_down(double)


def test_a_storage_daemon_with_native_io_takes_slots_as_well(tapdisk_host: TapdiskHost) -> None:
    bench, fmt = tapdisk_host.bench, "qcow"
    native = tap_disk("vdb", bench.formatted("b.qcow", fmt), fmt).replace("<driver", "<driver cache='none' io='native'")
    threads = tap_disk("vda", bench.formatted("a.qcow", fmt), fmt)
    with few_slots(aio_slots.OF_NATIVE_IO - 1):
        bench.push_disks("vm1", threads, native)
        assert_told(tapdisk_host, "vdb")
        assert bench.until_phase("vm1", "vda", "Up")["effective"]["server"].startswith("qemu-storage-daemon")
    bench.until_phase("vm1", "vdb", "Up")
    take_down(tapdisk_host)
