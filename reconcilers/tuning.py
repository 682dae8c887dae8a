"""How a disk's bytes are to be moved: caching, asynchronous I/O, discard, detection of zeroes, limits.

The names and what they mean are libvirt's (https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms).
"""

from dataclasses import dataclass
from enum import StrEnum
from itertools import product


class Cache(StrEnum):
    """Which caches of the host a write may rest in."""

    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    NONE = "none"
    DIRECTSYNC = "directsync"
    UNSAFE = "unsafe"

    @property
    def direct(self) -> bool:
        """Whether the host's page cache is bypassed."""
        return self in {Cache.NONE, Cache.DIRECTSYNC}

    @property
    def through(self) -> bool:
        """Whether every write is flushed before it counts as done."""
        return self in {Cache.WRITETHROUGH, Cache.DIRECTSYNC}


class Aio(StrEnum):
    """How the image is read and written without waiting."""

    THREADS = "threads"
    NATIVE = "native"
    IO_URING = "io_uring"


class DetectZeroes(StrEnum):
    """What is done with a write of nothing but zeroes."""

    OFF = "off"
    ON = "on"
    UNMAP = "unmap"


_RATES = product(("bytes", "iops"), ("total", "read", "write"), ("", "_max", "_max_length"))

LIMITS = (*(f"{which}_{what}_sec{peak}" for what, which, peak in _RATES), "size_iops_sec")
"""Names of I/O limits: bytes or requests a second, their peaks, and for how many seconds a peak may last."""


Limits = tuple[tuple[str, int], ...]
"""Pairs of one of `LIMITS` and a number above 0, by name."""

_LARGEST_REQUEST = 1 << 20
"""Bytes that the kernel has a FUSE server read or write at once (256 pages; measured at 160 KiB/s, by waits of 6 s)."""


def waits(limits: Limits) -> dict[str, float]:
    """For how many seconds each limit has a request wait behind the largest one.

    Peaks change nothing: they end. A server behind FUSE does nothing else meanwhile, and answers nobody.
    """
    size = dict(limits).get("size_iops_sec", _LARGEST_REQUEST)
    counts = {"bytes_sec": _LARGEST_REQUEST, "iops_sec": max(1, _LARGEST_REQUEST / size)}
    rates = [(name, name.partition("_")[2], value) for name, value in limits if name != "size_iops_sec"]
    return {name: counts[what] / value for name, what, value in rates if what in counts}


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a definition asks for, or what is in force.

    Attributes:
        cache: Writeback is the default of libvirt, and of the backends.
        io: None leaves it to the backend.
        discard: What the guest discards is given back to the host's storage.
        detect_zeroes: UNMAP only together with `discard`.
        limits: None at all where it is empty.
    """

    cache: Cache = Cache.WRITEBACK
    io: Aio | None = None
    discard: bool = True
    detect_zeroes: DetectZeroes = DetectZeroes.OFF
    limits: Limits = ()


UNTUNED = Tuning()
"""Nothing is asked for: every backend's own way."""
