"""Whether somebody has a file locked with flock(2)."""

import fcntl
import os
from pathlib import Path


def is_locked(path: Path) -> bool:
    """Whether the file is locked for one alone. Two who ask at once don't take each other for the holder.

    Raises:
        FileNotFoundError: There is no such file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
