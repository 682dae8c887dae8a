"""What the kernel logs of block devices: that a request failed, which no other event tells (/dev/kmsg, kernel 3.5).

A loop device over storage that has died stays as it is and only gives errors, and so does one over a dead server.
"""

import asyncio
import os
import re
from collections.abc import Callable
from types import TracebackType
from typing import Self

import structlog

from reconcilers.opener.ask import opened

log: structlog.stdlib.BoundLogger = structlog.get_logger()

CACHED_SECONDS = 1.5
"""How long the kernel may still answer from what it knows of a file on FUSE: libfuse and QEMU let it for a second."""

_RECORD_MAX = 8192  # CONSOLE_EXT_LOG_MAX
# A record of the kernel itself (facility 0) of any level: "3,14398,16961130104,-;I/O error, dev loop0, sector 0 …", see
# Documentation/ABI/testing/dev-kmsg and block/blk-core.c.
_FAILED = re.compile(rb"[0-7],[^;]*;[\w /:-]*error, dev (\w+), sector ")


class KernelLog:
    """Calls `on_failure` with the node of a block device whose request has failed, and once more a moment later.

    Use it as a context manager in a running event loop. The kernel leaves out what comes too fast, so it only saves
    time; a slow resync is still needed. Where the log may not be read, nothing is told.
    """

    def __init__(self, on_failure: Callable[[str], None]) -> None:
        self._on_failure = on_failure
        self._later: dict[str, asyncio.TimerHandle] = {}
        self._fd = -1

    def __enter__(self) -> Self:
        self._opening = asyncio.create_task(self._open(), name="kernel log")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opening.cancel()
        for later in self._later.values():
            later.cancel()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)

    async def _open(self) -> None:
        try:
            self._fd = await asyncio.to_thread(opened, "kernel_log")
        except OSError as error:  # EPERM without CAP_SYSLOG; in containers there may be none
            log.info("that storage has died under a loop device will be noticed late", why=error.strerror or str(error))
            return
        os.lseek(self._fd, 0, os.SEEK_END)
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        while True:
            try:
                record = os.read(self._fd, _RECORD_MAX)
            except BlockingIOError:
                return
            except BrokenPipeError:  # records were overwritten before they were read; the next read goes on
                continue
            if node := failed_node(record):
                self._tell(node)

    def _tell(self, node: str) -> None:
        if node not in self._later:
            self._on_failure(node)
            self._later[node] = asyncio.get_running_loop().call_later(CACHED_SECONDS, self._tell_again, node)

    def _tell_again(self, node: str) -> None:
        del self._later[node]
        self._on_failure(node)


def failed_node(record: bytes) -> str | None:
    """The node of the device of which the kernel logs that a request failed; None for any other record."""
    found = _FAILED.match(record)
    return f"/dev/{found[1].decode()}" if found else None
