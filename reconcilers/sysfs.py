"""Reads sysfs by bare calls, as every look at a disk asks there: a `Path` makes three times as many of them."""

import ctypes
import os

_libc = ctypes.PyDLL(None)  # one that keeps Python's lock

_PAGE = 4096
"""An attribute has no more, and gives all of it to one read (Documentation/filesystems/sysfs.rst)."""

_SHORT = 128


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


def glimpse(path: str) -> bytes | None:
    """What a short attribute, of /proc as well, says; None where it can't be read. Python's lock is kept as above."""
    fd = _libc.open(os.fsencode(path), os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        return None
    said = ctypes.create_string_buffer(_SHORT)
    length = _libc.read(fd, said, _SHORT)
    _libc.close(fd)
    return said.raw[:length] if length >= 0 else None
