"""Serves a folder with one file in it, `a.img`, from another file: python -m tests.faults.fuse_folder MOUNT FILE [eio]

With `eio`, every write fails.
"""

# ruff: noqa: ARG002 - every operation gets all that FUSE tells of it

import errno
import os
import stat
import sys

import mfusepy

NAME = "/a.img"


class OneFile(mfusepy.Operations):  # type: ignore[misc]
    """What is asked of the file is asked of the one below."""

    def __init__(self, below: str, *, failing_writes: bool) -> None:
        self._fd = os.open(below, os.O_RDWR)
        self._failing_writes = failing_writes

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path != NAME:
            raise mfusepy.FuseOSError(errno.ENOENT)
        facts = os.fstat(self._fd)
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": facts.st_size, "st_blocks": facts.st_blocks}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", NAME[1:]]

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if self._failing_writes:
            raise mfusepy.FuseOSError(errno.EIO)
        return os.pwrite(self._fd, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.ftruncate(self._fd, length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(self._fd)
        return 0


if __name__ == "__main__":
    mount, below, *more = sys.argv[1:]
    mfusepy.FUSE(OneFile(below, failing_writes="eio" in more), mount, foreground=True)
