"""One agent alone works on a runtime folder."""

import fcntl
import os
from pathlib import Path

from reconcilers.errors import DiskError
from reconcilers.reason import Reason


def lock_folder(runtime: Path) -> int:
    """Make and lock a runtime folder; returns the lock's descriptor, which is to be closed at the end.

    Raises:
        DiskError: SourceInUse if another agent has it, PermissionDenied if it can't be written.
    """
    try:
        runtime.mkdir(parents=True, exist_ok=True)
        fd = os.open(runtime / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"{runtime} can't be used: {error.strerror}; make it writable, or change paths.runtime"
        raise DiskError(Reason.PERMISSION_DENIED, message) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        message = f"another agent runs on {runtime}; stop it, or give this one another paths.runtime"
        raise DiskError(Reason.SOURCE_IN_USE, message) from error
    return fd
