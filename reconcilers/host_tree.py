"""The host's tree of files, also for a service that systemd gives mounts of its own.

A file that is opened in such a tree belongs to that tree's mount. Once the service was restarted, umount(8) on the
host would succeed under whoever has the file still, a loop device for example. So images are opened in PID 1's tree, by
way of /proc/1/root, which takes CAP_SYS_PTRACE (proc(5)). Its mounts are the host's at any time; those of the service
follow only where the host shares them (mount_namespaces(7)).
"""

import os
from pathlib import Path

from reconcilers.openat2 import RESOLVE_IN_ROOT, openat2

VARIABLE = "HOST_PROCESS"
"""Names a process in the environment, such as /proc/1, whose tree is the host's. Our own, unless somebody sets it."""


def mount_table() -> Path:
    """The host's mounts (proc(5), mountinfo)."""
    return Path(_process(), "mountinfo")


def open_folder(path: Path) -> int:
    """Open a folder of the host as an O_PATH descriptor, ours to close. A link on the way leads where it does there.

    Raises:
        OSError: As open(2).
    """
    root = os.open(f"{_process()}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return openat2(root, str(path), os.O_PATH | os.O_DIRECTORY, RESOLVE_IN_ROOT)
    finally:
        os.close(root)


def _process() -> str:
    return os.environ.get(VARIABLE, "/proc/self")
