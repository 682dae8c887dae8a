"""Open a disk's source once, and know exactly what was opened.

The path is resolved one single time, below a pool; every later step uses the descriptor.
"""

import errno
import os
import select
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from reconcilers import block_layer
from reconcilers.actual import SECTOR, Fault, FileId, Source, SourceKind
from reconcilers.errors import DiskError
from reconcilers.holders import GLANCE_SECONDS
from reconcilers.loop.devices import guest_disk_below
from reconcilers.pools import DEVICES, Pools, open_below, outside
from reconcilers.reason import Reason

T = TypeVar("T")

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}


@dataclass(frozen=True, slots=True)
class Pin:
    """A source that was found and judged, held by a descriptor that reads and writes nothing (open(2), O_PATH).

    Attributes:
        path: As the definition names it, for messages.
        fd: Whoever opens `/proc/self/fd/<fd>` gets this very file, whatever the path has come to mean.
        source: What it is.
        below: The images below it, the uppermost first.
    """

    path: str
    fd: int
    source: Source
    below: tuple["Pin", ...] = ()


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A source held open.

    Attributes:
        path: As the definition names it, for messages.
        fd: Readable, and writable unless it was opened read-only. Closed by whoever opened it.
        source: What was opened.
        start: Its first byte that counts.
    """

    path: str
    fd: int
    source: Source
    start: int = 0

    def part(self, offset: int, size: int | None) -> "OpenSource":
        """The same open file, of which only some bytes count; None stands for all behind `offset`."""
        if offset == 0 and size is None:
            return self
        rest = max(0, self.source.size_bytes - offset)
        source = replace(self.source, size_bytes=rest if size is None else min(size, rest))
        return replace(self, source=source, start=self.start + offset)

    def as_it_is_now(self) -> "OpenSource":
        """The same open file with the length that it has by now."""
        if self.source.kind is SourceKind.BLOCK:
            return self
        return replace(self, source=replace(self.source, size_bytes=os.fstat(self.fd).st_size))

    def read(self, length: int, at: int) -> bytes:
        """Up to `length` bytes from byte `at` of what counts."""
        return os.pread(self.fd, min(length, max(0, self.source.size_bytes - at)), self.start + at)


@contextmanager
def pinned(path: str, pools: Pools) -> Iterator[Pin]:
    """Find out what `path` refers to, once, and hold it for the length of the block.

    Raises:
        DiskError: InvalidSource, OutsidePools, DeviceNotAllowed, HardLinked, NotAnImage, ImageMissing, ImageEmpty,
            ImageTooSmall or PermissionDenied.
    """
    try:
        fd, base = open_below(pools, path)
    except OSError as error:
        raise _opening_failed(path, error, writable=False) from error
    try:
        yield Pin(path, fd, _source(path, fd, base, pools))
    finally:
        os.close(fd)


def file_now(pin: Pin) -> Source:
    """A pinned regular file with the length that it has by now.

    Raises:
        DiskError: ImageEmpty or ImageTooSmall.
    """
    return _with_bytes(pin.path, replace(pin.source, size_bytes=os.fstat(pin.fd).st_size))


def judged(find: Callable[[], T]) -> T | Fault:
    """What `find` returns, or why it can't be used."""
    try:
        return find()
    except DiskError as error:
        return Fault(error.reason, error.message)


def inspected(pin: Pin, inspect: Callable[[OpenSource], T]) -> T:
    """What `inspect` makes of a source that is open for reading only.

    A file that was open for writing tells those who watch it when it is closed, and we watch images that were refused
    for what is in them.

    Raises:
        DiskError: What `inspect` raises, and as `opened`.
    """
    with opened(pin, writable=False) as readable:
        return inspect(readable)


@contextmanager
def opened(pin: Pin, *, writable: bool) -> Iterator[OpenSource]:
    """Open a pinned source for data, for the length of the block.

    Raises:
        DiskError: ReadOnlySource where a writable disk was asked for and can't be had, PermissionDenied, ImageMissing,
            SourceInUse where somebody has a lease on it.
    """
    # O_NONBLOCK: a device that waits for a medium, or a file with a lease (fcntl(2)), must not hang us.
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = _open_past_leases(f"/proc/self/fd/{pin.fd}", flags)
    except OSError as error:
        raise _opening_failed(pin.path, error, writable=writable) from error
    try:
        yield OpenSource(pin.path, fd, pin.source)
    finally:
        os.close(fd)


def _open_past_leases(path: str, flags: int) -> int:
    """Open a file once who has a lease on it lets go: the agent's other threads have one for a moment (image_lock).

    The first attempt has the kernel tell the lessee.
    """
    for pause in GLANCE_SECONDS:
        with suppress(BlockingIOError):
            return os.open(path, flags)
        select.select((), (), (), pause)
    return os.open(path, flags)


def _source(path: str, fd: int, base: Path, pools: Pools) -> Source:
    try:
        facts = os.fstat(fd)  # opened by name alone: only now is a FUSE file's server asked, which may be dead
    except OSError as error:
        raise _opening_failed(path, error, writable=False) from error
    return _device(path, facts, pools) if base == DEVICES else _file(path, facts, pools)


def _file(path: str, facts: os.stat_result, pools: Pools) -> Source:
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "neither file nor device")
        message = f"source {path} is {kind}; name a regular file in a pool, or a block device by its name in /dev"
        raise DiskError(Reason.NOT_AN_IMAGE, message)
    runs_as_owner = facts.st_mode & stat.S_ISUID or (facts.st_mode & stat.S_ISGID and facts.st_mode & stat.S_IXGRP)
    if runs_as_owner:  # and the guest would write what runs
        message = f"source {path} is a program that runs with its owner's rights; take them off it (chmod ug-s)"
        raise DiskError(Reason.NOT_AN_IMAGE, message)
    if facts.st_nlink > 1 and not pools.hard_links:
        raise DiskError(
            Reason.HARD_LINKED,
            f"source {path} has {facts.st_nlink} names, of which others may be outside of its pool; copy the image, or "
            "have the host's operator allow hard links (images.hard_links)",
        )
    if os.major(facts.st_dev) and (label := guest_disk_below(facts.st_dev)):
        raise outside(path, pools, f"is on a file system that is in turn on the guest disk {label}")
    return _with_bytes(path, Source(kind=SourceKind.FILE, identity=FileId.of(facts), size_bytes=facts.st_size))


def _device(path: str, facts: os.stat_result, pools: Pools) -> Source:
    if not stat.S_ISBLK(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "a file, and in no image pool")
        raise outside(path, pools, f"is {kind}")
    size = block_layer.number(facts.st_rdev, "size")
    if size is None:
        numbers = f"{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}"
        raise DiskError(Reason.IMAGE_MISSING, f"source {path} is a node without a device behind it ({numbers})")
    pools.allow_device(path, facts.st_rdev)
    # sysfs counts in sectors whatever the device's block size is (block/genhd.c).
    return _with_bytes(path, Source(kind=SourceKind.BLOCK, identity=FileId.of(facts), size_bytes=size * SECTOR))


def _with_bytes(path: str, source: Source) -> Source:
    if source.size_bytes == 0:
        raise DiskError(Reason.IMAGE_EMPTY, f"source {path} has no bytes; create the image with its size first")
    if source.size_bytes < SECTOR:
        raise DiskError(
            Reason.IMAGE_TOO_SMALL,
            f"source {path} has {source.size_bytes} bytes, less than one sector of {SECTOR}; "
            "check that it arrived whole",
        )
    return source


def _opening_failed(path: str, error: OSError, *, writable: bool) -> DiskError:
    if error.errno in _MISSING:
        return DiskError(Reason.IMAGE_MISSING, f"source {path}: {error.strerror}; create the image or mend the path")
    if error.errno == errno.EWOULDBLOCK:
        return DiskError(
            Reason.SOURCE_IN_USE,
            f"source {path} is leased to a program that does not let it go (fcntl(2), F_SETLEASE), as file servers do; "
            "have that close it, or stop it",
        )
    if error.errno == errno.ENXIO:
        return DiskError(Reason.IMAGE_MISSING, f"source {path} is a node without a device behind it")
    if writable and error.errno in {errno.EROFS, errno.EPERM, errno.ETXTBSY}:
        return DiskError(
            Reason.READ_ONLY_SOURCE,
            f"source {path} can't be written ({error.strerror}) and the definition wants a writable disk; "
            "add <readonly/> or make it writable",
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return DiskError(
            Reason.PERMISSION_DENIED,
            f"source {path}: {error.strerror}; check its owner, mode and mount options",
        )
    return DiskError(Reason.KERNEL_ERROR, f"source {path}: {error.strerror} (errno {error.errno})")
