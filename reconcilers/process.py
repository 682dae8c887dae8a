"""Be told when a process ends, our child or not."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress


class ExitWatch:
    """Calls `ended` once when the process ends, until closed (pidfd_open(2): no race with a reused id).

    A child of ours is reaped. A process that is gone already counts as ended at once.
    """

    def __init__(self, pid: int, ended: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = ended
        try:
            self._pidfd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = None
            self._loop.call_soon(ended)
        else:
            self._loop.add_reader(self._pidfd, self._fire)

    def _fire(self) -> None:
        if self._pidfd is not None:
            with suppress(ChildProcessError):  # adopted from an earlier agent: init reaps it
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        self.close()
        self._ended()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


async def process_end(pid: int) -> None:
    """Wait until the process has ended; bound it with `asyncio.timeout`."""
    ended = asyncio.Event()
    watch = ExitWatch(pid, ended.set)
    try:
        await ended.wait()
    finally:
        watch.close()
