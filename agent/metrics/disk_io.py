"""What the kernel counts of each disk's block device, read from sysfs.

`/sys/block/<dev>/stat` (Documentation/admin-guide/iostats.rst) counts in sectors of 512 bytes whatever the device's
own are. It goes on counting when another file is bound to a loop device's number, so what it had counted when a disk
was seen first is not that disk's. Errors are counted by SCSI alone (`device/ioerr_cnt`, hexadecimal); a loop device has
no such file. Nothing here opens a device or asks the storage under it, so a hung disk holds up nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reconcilers.actual import SECTOR
from reconcilers.spec import DiskKey

_READ_IOS, _READ_SECTORS, _WRITE_IOS, _WRITE_SECTORS, _IN_FLIGHT, _BUSY_MS = 0, 2, 4, 6, 8, 9


class Device(NamedTuple):
    """One attachment of a disk: the kernel's node, and its sequence number (None if it has none)."""

    node: str
    diskseq: int | None


@dataclass(frozen=True, slots=True)
class DiskIo:
    """Totals, but for `in_flight`, which is now; `errors` is None where the kernel counts none."""

    read_requests: int
    read_bytes: int
    write_requests: int
    write_bytes: int
    in_flight: int
    busy_seconds: float
    errors: int | None

    def since(self, first: "DiskIo") -> "DiskIo":
        """What came to it since `first`."""
        return DiskIo(
            read_requests=self.read_requests - first.read_requests,
            read_bytes=self.read_bytes - first.read_bytes,
            write_requests=self.write_requests - first.write_requests,
            write_bytes=self.write_bytes - first.write_bytes,
            in_flight=self.in_flight,
            busy_seconds=self.busy_seconds - first.busy_seconds,
            errors=None if self.errors is None else self.errors - (first.errors or 0),
        )


class DiskMeters:
    """What went over each disk since this agent has counted it."""

    def __init__(self, sysfs: Path = Path("/sys/block")) -> None:
        self._sysfs = sysfs
        self._first: dict[DiskKey, tuple[Device, DiskIo]] = {}

    def read(self, devices: Mapping[DiskKey, Device]) -> dict[DiskKey, DiskIo]:
        """The totals of each disk whose device is there. Blocks; call it in one thread at a time."""
        totals = dict(self._read(devices))
        self._first = {
            key: known if (known := self._first.get(key)) and known[0] == devices[key] else (devices[key], totals[key])
            for key in totals
        }
        return {key: io.since(self._first[key][1]) for key, io in totals.items()}

    def _read(self, devices: Mapping[DiskKey, Device]) -> Iterator[tuple[DiskKey, DiskIo]]:
        for key, device in devices.items():
            folder = self._sysfs / Path(device.node).name
            try:
                numbers = [int(word) for word in (folder / "stat").read_text(encoding="ascii").split()]
            except OSError:  # gone in this moment
                continue
            yield key, _totals(numbers, _errors(folder / "device" / "ioerr_cnt"))


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
