"""The table of mounts (proc(5)), and the one call that FUSE exports need (umount2(2))."""

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from reconcilers.host_tree import mount_table

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted on `path`. Reads a table, so a hung or dead server can't hold it up."""
    # mountinfo writes blank, tab, newline and backslash as octal escapes (proc(5)).
    wanted = str(path).translate({ord(c): f"\\{ord(c):03o}" for c in " \t\n\\"})
    return any(row[4] == wanted for row in _rows())


class Mount(NamedTuple):
    """One line of the table. Its number alone is no name: the next mount takes the lowest that is free."""

    number: str
    device: str
    point: str
    source: str


def mounts() -> frozenset[Mount]:
    """All that the host has."""
    return frozenset(Mount(row[0], row[2], row[4], row[row.index("-") + 2]) for row in _rows())


def mounts_on(device_path: str) -> frozenset[Mount]:
    """Those of a block device, also where the file system has a number of its own, as btrfs does."""
    rdev = os.stat(device_path).st_rdev  # noqa: PTH116
    device = f"{os.major(rdev)}:{os.minor(rdev)}"
    return frozenset(mount for mount in mounts() if device_path == mount.source or device == mount.device)


def _rows() -> Iterator[list[str]]:
    with mount_table().open(encoding="utf-8", errors="surrogateescape") as table:
        yield from (line.split(" ") for line in table)


def unmount_lazily(path: Path) -> None:
    """Take a mount out of the tree now, whoever still uses it; nothing happens if there is none.

    Lazily, because the mount of a dead FUSE server answers ENOTCONN to everything else. Exports in jails are not in
    our tree: the table is asked first, as the service may not even call umount2(2).
    """
    if not is_mount_point(path):
        return
    if _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        return
    code = ctypes.get_errno()
    if code not in {errno.EINVAL, errno.ENOENT}:  # not a mount point; no such path
        raise OSError(code, os.strerror(code), str(path))
