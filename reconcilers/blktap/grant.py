"""What this host and its server grant of a tap's tuning, found out before the server starts."""

import ctypes
import errno
import os
from dataclasses import replace

from reconcilers.actual import SourceKind
from reconcilers.fallocate import KEEP_SIZE, PUNCH_HOLE, fallocate
from reconcilers.honour import possible
from reconcilers.source import OpenSource
from reconcilers.spec import Backend, DiskSpec, Format
from reconcilers.tuning import Aio, Cache, Tuning

_IO_URING_SETUP = 425  # the same on every architecture (asm-generic/unistd.h)
_FAR = (1 << 40, 1 << 30)

_libc = ctypes.CDLL(None, use_errno=True)


def grant(spec: DiskSpec, image: OpenSource, *, exact: bool, through: bool) -> Tuning:
    """What of a spec's tuning can be had for its image.

    Args:
        spec: For the blktap backend.
        image: Open as it will be served.
        exact: A hole that is punched into the server's export reads as zeroes in every format.
        through: The server flushes every write when told to.
    """
    granted = possible(spec.tuning, Backend.BLKTAP)
    if granted.discard and not spec.read_only:
        # The kernel punches holes where a guest wants zeroes, so where they are not exact there must be none.
        raw_file = spec.format is Format.AIO and image.source.kind is SourceKind.FILE
        granted = replace(granted, discard=_punches_holes(image) if raw_file else exact)
    if granted.cache.through and not through:
        granted = replace(granted, cache=Cache.NONE if granted.cache.direct else Cache.WRITEBACK)
    if granted.cache.direct and not _opens_direct(image.fd):
        cache = Cache.WRITETHROUGH if granted.cache.through else Cache.WRITEBACK
        granted = replace(granted, cache=cache, io=Aio.THREADS if granted.io is Aio.NATIVE else granted.io)
    if granted.io is Aio.IO_URING and not has_io_uring():
        granted = replace(granted, io=Aio.THREADS)
    return granted


def _opens_direct(fd: int) -> bool:
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EINVAL:  # the file system has no direct I/O (open(2))
            return False
        raise
    return True


def _punches_holes(image: OpenSource) -> bool:
    """Punch far behind the end, where nothing is: only whether the file system knows how is of interest.

    The end is asked for anew, and far is further than anybody appends meanwhile: a hole in what they wrote is zeroes.
    """
    end = image.as_it_is_now().source.size_bytes
    for far in _FAR:
        try:
            fallocate(image.fd, KEEP_SIZE | PUNCH_HOLE, (end | 0xFFFF) + 1 + far, 4096)
        except OSError as error:
            if error.errno == errno.EFBIG:  # no file can be so long; ext4's end at 16 TiB
                continue
            return False
        return True
    return False


def has_io_uring() -> bool:
    """Whether the kernel lets us have a ring (io_uring_setup(2)); containers and sysctl often forbid it."""
    parameters = ctypes.create_string_buffer(120)  # struct io_uring_params
    fd = _libc.syscall(_IO_URING_SETUP, 1, parameters)
    if fd < 0:
        return False
    os.close(fd)
    return True
