"""The kernel's counts of a disk's device."""

from pathlib import Path

from agent.metrics.disk_io import Device, DiskMeters
from reconcilers.spec import DiskKey

KEY = DiskKey("vm1", "vda")
DEVICE = Device("/dev/sdx", 7)


def device(sysfs: Path, stat: str, errors: str | None = None) -> None:
    folder = sysfs / "sdx"
    (folder / "device").mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(stat)
    if errors is not None:
        (folder / "device" / "ioerr_cnt").write_text(errors)


def test_sectors_become_bytes_and_errors_are_hexadecimal(tmp_path: Path) -> None:
    meters = DiskMeters(tmp_path)
    device(tmp_path, "0 0 0 0 0 0 0 0 0 0 0", "0x0\n")
    meters.read({KEY: DEVICE})
    device(tmp_path, "   11  0  16  5  22  0  32  7  3  1500  12  0 0 0 0 0 0\n", "0x1f\n")
    io = meters.read({KEY: DEVICE})[KEY]
    assert (io.read_requests, io.read_bytes, io.write_requests, io.write_bytes) == (11, 8192, 22, 16384)
    assert (io.in_flight, io.busy_seconds, io.errors) == (3, 1.5, 0x1F)


def test_what_a_number_has_counted_for_others_is_not_the_disks(tmp_path: Path) -> None:
    meters = DiskMeters(tmp_path)
    for attachment in (DEVICE, DEVICE._replace(diskseq=8)):
        device(tmp_path, "100 0 200 0 300 0 400 0 2 5000 0")
        io = meters.read({KEY: attachment})[KEY]
        assert (io.read_bytes, io.write_bytes, io.busy_seconds, io.in_flight) == (0, 0, 0, 2)
        device(tmp_path, "101 0 202 0 303 0 404 0 0 5500 0")
        io = meters.read({KEY: attachment})[KEY]
        assert (io.read_requests, io.read_bytes, io.write_bytes, io.busy_seconds) == (1, 1024, 2048, 0.5)


def test_a_device_that_counts_no_errors_has_none_to_tell(tmp_path: Path) -> None:
    device(tmp_path, "1 0 2 0 3 0 4 0 0 0 0")
    assert DiskMeters(tmp_path).read({KEY: DEVICE})[KEY].errors is None


def test_a_device_that_is_gone_is_left_out(tmp_path: Path) -> None:
    assert DiskMeters(tmp_path).read({KEY: DEVICE}) == {}
