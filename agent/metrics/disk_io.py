"""What the kernel counts of each disk's block device, read from sysfs.

`/sys/block/<dev>/stat` (Documentation/admin-guide/iostats.rst) counts in sectors of 512 bytes whatever the device's
own are. Errors are counted by SCSI alone (`device/ioerr_cnt`, hexadecimal); a loop device has no such file. Nothing
here opens a device or asks the storage under it, so a hung disk holds up nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from reconcilers.actual import SECTOR
from reconcilers.spec import DiskKey

_READ_IOS, _READ_SECTORS, _WRITE_IOS, _WRITE_SECTORS, _IN_FLIGHT, _BUSY_MS = 0, 2, 4, 6, 8, 9


@dataclass(frozen=True, slots=True)
class DiskIo:
    """Totals since the device came up; `errors` is None where the kernel counts none."""

    read_requests: int
    read_bytes: int
    write_requests: int
    write_bytes: int
    in_flight: int
    busy_seconds: float
    errors: int | None


def read_all(devices: Mapping[DiskKey, str], sysfs: Path = Path("/sys/block")) -> Iterator[tuple[DiskKey, DiskIo]]:
    """The totals of each disk whose device is there. Blocks; call it in a thread."""
    for key, device_path in devices.items():
        device = sysfs / Path(device_path).name
        try:
            numbers = [int(word) for word in (device / "stat").read_text(encoding="ascii").split()]
        except OSError:  # gone in this moment
            continue
        yield key, _totals(numbers, _errors(device / "device" / "ioerr_cnt"))


def _totals(numbers: list[int], errors: int | None) -> DiskIo:
    return DiskIo(
        read_requests=numbers[_READ_IOS],
        read_bytes=numbers[_READ_SECTORS] * SECTOR,
        write_requests=numbers[_WRITE_IOS],
        write_bytes=numbers[_WRITE_SECTORS] * SECTOR,
        in_flight=numbers[_IN_FLIGHT],
        busy_seconds=numbers[_BUSY_MS] / 1000,
        errors=errors,
    )


def _errors(counter: Path) -> int | None:
    try:
        return int(counter.read_text(encoding="ascii"), 16)
    except (OSError, ValueError):
        return None
