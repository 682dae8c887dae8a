"""The two mount calls that FUSE exports need, by way of the C library (mount(2), umount2(2))."""

import ctypes
import errno
import os
from pathlib import Path

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted on `path`. Reads a table, so a hung or dead server can't hold it up."""
    # mountinfo writes blank, tab, newline and backslash as octal escapes (proc(5)).
    wanted = str(path).translate({ord(c): f"\\{ord(c):03o}" for c in " \t\n\\"})
    with Path("/proc/self/mountinfo").open(encoding="utf-8", errors="surrogateescape") as table:
        return any(line.split(" ", 5)[4] == wanted for line in table)


def unmount_lazily(path: Path) -> None:
    """Take a mount out of the tree now, whoever still uses it; nothing happens if there is none.

    Lazily, because the mount of a dead FUSE server answers ENOTCONN to everything else.
    """
    if _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        return
    code = ctypes.get_errno()
    if code not in {errno.EINVAL, errno.ENOENT}:  # not a mount point; no such path
        raise OSError(code, os.strerror(code), str(path))
