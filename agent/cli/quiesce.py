"""`tapster quiesce` and `tapster resume`: a guest's disks are held still on this host while their images are copied.

The agent does it, on requests that it finds in its runtime folder; so a disk goes on by itself when the time is over,
also with an agent that was started meanwhile.
"""

import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from agent.doctor.storage import agent_process
from agent.settings import Settings
from reconcilers.blktap.kinds import ServerKind
from reconcilers.blktap.tap import TAPS, TapFolder, TapRecord
from reconcilers.holds import HoldRequest, HoldRequests
from reconcilers.spec import DiskKey
from reconcilers.tuning import Aio

PATIENCE_SECONDS = 30.0
"""How long the agent may take. To flush may take long; who asks can ask again."""

_LOOK_AGAIN_SECONDS = 0.02


class _CannotHoldError(Exception):
    """Says why."""


def quiesce(guest: str, targets: Sequence[str], *, seconds: float, settings: Settings) -> int:
    """Have disks flushed and held, and return once nothing is written to their images any more.

    Args:
        guest: Whose disks.
        targets: Which; all if there are none.
        seconds: How long at most, from now on.
        settings: The agent's.

    Returns:
        0 if all are held; 1 if one can't be, and then none is.
    """
    try:
        keys = _holdable(guest, targets, settings)
        until = _hold(settings.paths.runtime, keys, seconds)
    except (_CannotHoldError, OSError) as error:
        sys.stderr.write(f"tapster quiesce: {guest}: {error}\n")
        return 1
    for key in keys:
        sys.stdout.write(f"{key} is held until {until}\n")
    return 0


def resume(guest: str, targets: Sequence[str], settings: Settings) -> int:
    """Let disks go on.

    Returns:
        0 if all were held until now; 1 if one was not, so that what was copied of it is not to be trusted.
    """
    runtime = settings.paths.runtime
    requests = HoldRequests(runtime)
    there = _targets(runtime, guest)
    keys = [DiskKey(guest, target) for target in targets or there]
    held = [key for key in keys if _tap(runtime, key).held() is not None or requests.path(key).exists()]
    if not held and (missing := _missing(targets, there)):
        sys.stderr.write(f"tapster resume: {guest}: {missing}\n")
        return 1
    sound = {key for key in held if _tap(runtime, key).held() and requests.until(key)}
    try:
        gone_on = _take_back(runtime, requests, held)
    except OSError as error:
        sys.stderr.write(f"tapster resume: {guest}: {error}\n")
        return 1
    if not held or sound < set(held) or (targets and len(held) < len(targets)):
        message = "not all of that was held until now: what was copied since it went on by itself may be torn"
        sys.stderr.write(f"tapster resume: {guest}: {message}\n")
        return 1
    if not gone_on:
        sys.stderr.write(f"tapster resume: {guest}: the agent has not let it go on yet: journalctl -u tapster -n 20\n")
        return 1
    return 0


def ask(requests: HoldRequests, keys: Sequence[DiskKey], seconds: float) -> str:
    """Leave a request for each disk; returns until when, for people."""
    until = (datetime.now().astimezone() + timedelta(seconds=seconds)).strftime("%H:%M:%S %Z")
    request = HoldRequest(ends=time.clock_gettime(time.CLOCK_BOOTTIME) + seconds, until=until)
    for key in keys:
        requests.leave(key, request)
    return until


def _hold(runtime: Path, keys: Sequence[DiskKey], seconds: float) -> str:
    requests = HoldRequests(runtime)
    try:
        until = ask(requests, keys, seconds)
        held = _wait(lambda: all(_tap(runtime, key).held() for key in keys), lambda: not _asked(requests, keys))
    except BaseException:  # Ctrl-C, too: nobody copies then, and the guest would wait for nothing
        for key in keys:
            requests.forget(key)
        raise
    if not held:
        _take_back(runtime, requests, keys)
        raise _CannotHoldError("the agent could not hold them, and they go on: journalctl -u tapster -n 20")
    return until


def _holdable(guest: str, targets: Sequence[str], settings: Settings) -> list[DiskKey]:
    if agent_process(settings) is None:
        raise _CannotHoldError("no agent runs here, which it takes to let them go on: systemctl start tapster")
    runtime = settings.paths.runtime
    there = _targets(runtime, guest)
    if missing := _missing(targets, there):
        raise _CannotHoldError(missing)
    keys = [DiskKey(guest, target) for target in targets or there]
    if why := next((f"{key.target} {why}" for key in keys if (why := _why_not(_tap(runtime, key).record()))), None):
        raise _CannotHoldError(why)
    return keys


def _missing(targets: Sequence[str], there: Sequence[str]) -> str | None:
    """What to say of disks that were asked for and are not up."""
    missing = [target for target in targets if target not in there] if there else targets or ["any disk"]
    return f"{', '.join(missing)} of it is not up here; see tapster status" if missing else None


def _why_not(record: TapRecord | None) -> str | None:
    if record is None:
        return (
            "is on loop or a block device of the host's, and the kernel holds no request of theirs back; use blktap, "
            "or freeze the file system in the guest"
        )
    if record.tuning.io is not Aio.THREADS and record.server_kind is ServerKind.STORAGE_DAEMON:
        return f"has io='{record.tuning.io}', so the kernel may still write after its server was stopped; use 'threads'"
    return None


def _targets(runtime: Path, guest: str) -> list[str]:
    return sorted(path.name for path in (runtime / "disks" / guest).glob("*") if path.is_symlink())


def _tap(runtime: Path, key: DiskKey) -> TapFolder:
    return TapFolder.of(runtime / TAPS, key)


def _asked(requests: HoldRequests, keys: Sequence[DiskKey]) -> bool:
    return all(requests.until(key) for key in keys)


def _take_back(runtime: Path, requests: HoldRequests, keys: Sequence[DiskKey]) -> bool:
    for key in keys:
        requests.forget(key)
    return _wait(lambda: all(_tap(runtime, key).held() is None for key in keys), lambda: False)


def _wait(done: Callable[[], bool], hopeless: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if hopeless() or time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_AGAIN_SECONDS)
    return True
