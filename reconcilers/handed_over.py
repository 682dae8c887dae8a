"""Open files that systemd has passed to the service, each by its name (sd_listen_fds(3))."""

import os

_FIRST = 3  # SD_LISTEN_FDS_START


def handed_over(name: str) -> int | None:
    """The descriptor of what is called so; None if there is none. It stays open for as long as we run."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or name not in names:
        return None
    return _FIRST + names.index(name)
