"""What holds a disk still: its device flushed, its server stopped, the image on its disk. All of it blocks."""

import os
import signal
import time
from pathlib import Path

from reconcilers.actual import FileId
from reconcilers.errors import DiskError
from reconcilers.reason import Reason

_LOOK_AGAIN_SECONDS = 0.01


def flush(path: str) -> None:
    """Have everything that was written to a file or block device, and what serves it has of that, on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_image(pid: int, identity: FileId) -> None:
    """Have everything on the disk that a process has written to a file which it has open."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if FileId.of(entry.stat()) == identity:
            flush(str(entry))
            return


def stop_process(pid: int, *, within: float) -> None:
    """Stop a process, and wait until none of its threads is in the middle of a write any more.

    Raises:
        DiskError: TimedOut; it is as it was.
    """
    deadline = time.monotonic() + within
    os.kill(pid, signal.SIGSTOP)
    while not _stands_still(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGCONT)
            message = f"the server (pid {pid}) was still writing after {within:g} s; its storage may hang"
            raise DiskError(Reason.TIMED_OUT, message)
        time.sleep(_LOOK_AGAIN_SECONDS)


def _stands_still(pid: int) -> bool:
    """A thread that was in a system call stops at its end, so that no write of it is to come (signal(7))."""
    stats = (task / "stat" for task in Path(f"/proc/{pid}/task").iterdir())
    return all(
        stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] == "T" for stat in stats
    )
