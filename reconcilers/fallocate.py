"""fallocate(2) itself: what Python has is posix_fallocate(3), which writes where the file system can't do it."""

import ctypes
import os

KEEP_SIZE, PUNCH_HOLE = 1, 2
"""FALLOC_FL_* of linux/falloc.h."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change what a range of an open file occupies.

    Raises:
        OSError: As fallocate(2) has it; EOPNOTSUPP if the file system does not know how.
    """
    if _libc.fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
