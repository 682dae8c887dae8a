"""Open a disk's source once, and know exactly what was opened.

The path is resolved one single time; every later step uses the descriptor.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from reconcilers.actual import FileId, Source, SourceKind
from reconcilers.errors import DiskError
from reconcilers.reason import Reason

T = TypeVar("T")

SECTOR = 512

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


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
        rest = max(0, self.source.size_bytes - offset)
        source = replace(self.source, size_bytes=rest if size is None else min(size, rest))
        return replace(self, source=source, start=self.start + offset)

    def read(self, length: int, at: int) -> bytes:
        """Up to `length` bytes from byte `at` of what counts."""
        return os.pread(self.fd, min(length, max(0, self.source.size_bytes - at)), self.start + at)


def look_at(path: str) -> Source:
    """What `path` refers to, without opening it for data.

    Raises:
        DiskError: ImageMissing, PermissionDenied, NotAnImage, ImageEmpty or ImageTooSmall.
    """
    with _pinned(path) as (_, source):
        return source


@contextmanager
def open_source(path: str, *, writable: bool, inspect: Callable[[OpenSource], T]) -> Iterator[tuple[OpenSource, T]]:
    """Open `path` for data and keep it open for the length of the block.

    Args:
        path: Resolved once.
        writable: Open it for writing too.
        inspect: Reads the source first, open for reading only: a file that was open for writing tells those who watch
            it when it is closed, and we watch images that were refused for what is in them.

    Returns:
        The open source, and what `inspect` made of it.

    Raises:
        DiskError: As `look_at`, and ReadOnlySource where a writable disk was asked for and can't be had.
    """
    with ExitStack() as stack:
        with _pinned(path) as (pin, source):
            with _reopened(path, pin, source, writable=False) as readable:
                found = inspect(readable)
            image = stack.enter_context(_reopened(path, pin, source, writable=writable))
        yield image, found


@contextmanager
def _reopened(path: str, pin: int, source: Source, *, writable: bool) -> Iterator[OpenSource]:
    # O_NONBLOCK: a device that waits for a medium must not hang us; it has no effect on regular files.
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(f"/proc/self/fd/{pin}", flags)
    except OSError as error:
        raise _opening_failed(path, error, writable=writable) from error
    try:
        yield OpenSource(path, fd, source)
    finally:
        os.close(fd)


@contextmanager
def _pinned(path: str) -> Iterator[tuple[int, Source]]:
    """Resolve `path` to an O_PATH descriptor, which opens nothing: a FIFO or tape sees no reader."""
    try:
        pin = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise _opening_failed(path, error, writable=False) from error
    try:
        yield pin, _describe(path, pin)
    finally:
        os.close(pin)


def _describe(path: str, pin: int) -> Source:
    try:
        facts = os.fstat(pin)
    except OSError as error:  # opened by name alone: only now is a FUSE file's server asked, which may be dead
        raise _opening_failed(path, error, writable=False) from error
    if stat.S_ISREG(facts.st_mode):
        source = Source(kind=SourceKind.FILE, identity=FileId(facts.st_dev, facts.st_ino), size_bytes=facts.st_size)
    elif stat.S_ISBLK(facts.st_mode):
        size = _device_size(path, facts.st_rdev)
        source = Source(kind=SourceKind.BLOCK, identity=FileId(facts.st_rdev, 0), size_bytes=size)
    else:
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "neither file nor device")
        raise DiskError(Reason.NOT_AN_IMAGE, f"source {path} is {kind}; name a regular file or a block device")
    if source.size_bytes == 0:
        raise DiskError(Reason.IMAGE_EMPTY, f"source {path} has no bytes; create the image with its size first")
    if source.size_bytes < SECTOR:
        raise DiskError(
            Reason.IMAGE_TOO_SMALL,
            f"source {path} has {source.size_bytes} bytes, less than one sector of {SECTOR}; "
            "check that it arrived whole",
        )
    return source


def _device_size(path: str, rdev: int) -> int:
    # sysfs counts in 512-byte units whatever the device's block size is (block/genhd.c).
    sysfs = f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}/size"
    try:
        with open(sysfs, encoding="ascii") as file:  # noqa: PTH123 - one read on a hot path
            return int(file.read()) * 512
    except OSError as error:
        raise DiskError(
            Reason.IMAGE_MISSING,
            f"source {path} is a node without a device behind it ({os.major(rdev)}:{os.minor(rdev)})",
        ) from error


def _opening_failed(path: str, error: OSError, *, writable: bool) -> DiskError:
    if error.errno in _MISSING:
        return DiskError(Reason.IMAGE_MISSING, f"source {path}: {error.strerror}; create the image or mend the path")
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
