"""`tapster grow`: a disk of a guest is made larger on this host, image and all, while it is in use.

The agent does it, on a request that it finds in its runtime folder.
"""

import re
import sys
import time

from agent.doctor.storage import agent_process
from agent.settings import Settings
from reconcilers.growth import GrowRequest, GrowRequests
from reconcilers.spec import DiskKey

PATIENCE_SECONDS = 30.0
"""How long the agent may take."""

_LOOK_AGAIN_SECONDS = 0.02
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size_of(text: str) -> int:
    """A size in bytes, or with K, M, G or T behind it, each 1024 times the one before.

    Raises:
        ValueError: It is none.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,18})([KMGT]?)", text)
    if match is None or (size := int(match[1]) * _UNITS[match[2]]) >= 1 << 63:
        raise ValueError(f"{text!r} is no size; write bytes, or a number with K, M, G or T behind it, such as 20G")
    return size


def grow(guest: str, target: str, size_bytes: int, settings: Settings) -> int:
    """Have a disk made larger.

    Returns:
        0 if its image is; 1 if it can't be, and then nothing has changed.
    """
    key, requests = DiskKey(guest, target), GrowRequests(settings.paths.runtime)
    if why := _outcome(key, size_bytes, requests, settings):
        sys.stderr.write(f"tapster grow: {key}: {why}\n")
        return 1
    sys.stdout.write(f"the image of {key} has {size_bytes} bytes for it now; see tapster status for the disk\n")
    return 0


def ask(requests: GrowRequests, key: DiskKey, size_bytes: int) -> None:
    """Leave a request, and forget how an earlier one was answered."""
    requests.answer_path(key).unlink(missing_ok=True)
    requests.leave(key, GrowRequest(size_bytes=size_bytes))


def _outcome(key: DiskKey, size_bytes: int, requests: GrowRequests, settings: Settings) -> str | None:
    """Why the disk was not made larger; None if it was."""
    if agent_process(settings) is None:
        return "no agent runs here, which is to do it: systemctl start tapster"
    if not (settings.paths.runtime / "disks" / key.guest / key.target).is_symlink():
        return "it is not up here; see tapster status"
    try:
        ask(requests, key, size_bytes)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (answer := requests.answered(key)) is None:
            if time.monotonic() > deadline:
                requests.forget(key)
                return "the agent did not come to it, as the disk is not as it should be: see tapster status"
            time.sleep(_LOOK_AGAIN_SECONDS)
        requests.answer_path(key).unlink(missing_ok=True)
    except OSError as error:
        return f"it can't be asked for: {error}"
    except BaseException:  # Ctrl-C, too: the agent would do it when nobody expects it any more
        requests.forget(key)
        raise
    return answer.error
