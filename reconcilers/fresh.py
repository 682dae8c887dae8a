"""The size of a file as its file system has it now, where the kernel remembers an older one (FUSE)."""

import ctypes
import os

_EMPTY_PATH_FORCE_SYNC = 0x1000 | 0x2000  # AT_EMPTY_PATH, AT_STATX_FORCE_SYNC (statx(2))
_SIZE = 0x200  # STATX_SIZE

_libc = ctypes.CDLL(None, use_errno=True)


def fresh_size(fd: int) -> int:
    """Ask anew, and have the kernel remember the answer.

    Raises:
        OSError: The file system does not answer.
    """
    if _libc.statx(fd, b"", _EMPTY_PATH_FORCE_SYNC, _SIZE, ctypes.create_string_buffer(256)):  # struct statx
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return os.fstat(fd).st_size
