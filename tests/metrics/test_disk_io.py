"""The kernel's counts of a disk's device."""

from pathlib import Path

from agent.metrics.disk_io import read_all
from reconcilers.spec import DiskKey

KEY = DiskKey("vm1", "vda")


def device(sysfs: Path, stat: str, errors: str | None = None) -> None:
    folder = sysfs / "sdx"
    (folder / "device").mkdir(parents=True)
    (folder / "stat").write_text(stat)
    if errors is not None:
        (folder / "device" / "ioerr_cnt").write_text(errors)


def test_sectors_become_bytes_and_errors_are_hexadecimal(tmp_path: Path) -> None:
    device(tmp_path, "   11  0  16  5  22  0  32  7  3  1500  12  0 0 0 0 0 0\n", "0x1f\n")
    [(key, io)] = read_all({KEY: "/dev/sdx"}, tmp_path)
    assert key == KEY
    assert (io.read_requests, io.read_bytes, io.write_requests, io.write_bytes) == (11, 8192, 22, 16384)
    assert (io.in_flight, io.busy_seconds, io.errors) == (3, 1.5, 0x1F)


def test_a_device_that_counts_no_errors_has_none_to_tell(tmp_path: Path) -> None:
    device(tmp_path, "1 0 2 0 3 0 4 0 0 0 0")
    [(_, io)] = read_all({KEY: "/dev/sdx"}, tmp_path)
    assert io.errors is None


def test_a_device_that_is_gone_is_left_out(tmp_path: Path) -> None:
    assert list(read_all({KEY: "/dev/sdx"}, tmp_path)) == []
