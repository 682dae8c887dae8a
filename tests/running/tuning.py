"""What the tests of tuning look at: a server's own account of its nodes, and what the kernel knows of the rest."""

import asyncio
import ctypes
import fcntl
import os
import struct
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from reconcilers.spec import DiskKey
from reconcilers.tag import disk_id
from tests.workbench import Bench

_BLKDISCARD, _BLKZEROOUT = 0x1277, 0x127F
_CACHESTAT = 451

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def ask(bench: Bench, target: str, command: str, **arguments: object) -> Any:
    """Ask the server of vm1's disk."""

    async def asked() -> Any:
        client = QMPClient("test")
        await client.connect(str(bench.runtime / "taps" / disk_id(DiskKey("vm1", target)) / "qmp.sock"))
        try:
            return await client.execute(command, arguments)
        finally:
            await client.disconnect()

    return asyncio.run(asked())


def nodes(bench: Bench, target: str) -> dict[str, dict[str, Any]]:
    """The server's block nodes by name."""
    return {node["node-name"]: node for node in ask(bench, target, "query-named-block-nodes", flat=True)}


def discard(path: Path, offset: int, length: int) -> None:
    """What a guest's discard comes to."""
    _range(path, _BLKDISCARD, offset, length)


def zero_out(path: Path, offset: int, length: int) -> None:
    """What a guest's write of zeroes comes to."""
    _range(path, _BLKZEROOUT, offset, length)


def punch(path: Path, offset: int, length: int) -> None:
    """What a guest's write of zeroes that may be unmapped comes to: FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE."""
    fd = os.open(path, os.O_RDWR)
    try:
        if _libc.fallocate(fd, 3, offset, length):
            raise OSError(ctypes.get_errno(), "fallocate")
    finally:
        os.close(fd)


def read_past_the_cache(path: Path, length: int) -> bytes:
    """The first bytes of a device as its backend has them, not as the page cache remembers them."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, length, 0)
    finally:
        os.close(fd)


def dirty_pages(path: Path) -> int | None:
    """Pages of a file that are not on its disk yet (cachestat(2)); None before Linux 6.5."""
    fd = os.open(path, os.O_RDONLY)
    try:
        counts = (ctypes.c_uint64 * 5)()
        if _libc.syscall(_CACHESTAT, fd, (ctypes.c_uint64 * 2)(0, 0), counts, 0):
            return None
        return counts[1] + counts[2]
    finally:
        os.close(fd)


def allocated(path: Path) -> int:
    """Bytes that a file occupies."""
    os.sync()
    return path.stat().st_blocks * 512


def _range(path: Path, request: int, offset: int, length: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.ioctl(fd, request, struct.pack("QQ", offset, length))
    finally:
        os.close(fd)
