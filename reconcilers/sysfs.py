"""Reads sysfs by bare calls, as every look at a disk asks there: a `Path` makes three times as many of them."""

import ctypes
import os

_libc = ctypes.PyDLL(None)  # one that keeps Python's lock

_PAGE = 4096
"""An attribute has no more, and gives all of it to one read (Documentation/filesystems/sysfs.rst)."""


def read(path: str) -> str:
    """What an attribute says. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _PAGE).decode("utf-8", "replace").strip()
    finally:
        os.close(fd)


def exists(path: str) -> bool:
    """Whether there is such an attribute or folder.

    Python's lock is kept meanwhile, for it takes a microsecond, and fifty to get the lock back from another thread.
    """
    return bool(_libc.access(os.fsencode(path), os.F_OK) == 0)
