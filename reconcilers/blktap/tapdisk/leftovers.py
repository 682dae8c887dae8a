"""What a tapdisk that is dead has left: a minor that counts as taken, sockets, shared memory."""

import asyncio
import errno
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from reconcilers.blktap.tap import TapFolder
from reconcilers.blktap.tapdisk import tap_ctl
from reconcilers.blktap.tapdisk.tap_ctl import TapCtlError
from reconcilers.flock import is_locked

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - tapdisk's choice, not ours  # nosec B108


async def clear_away(tap: TapFolder, *, within: float) -> None:
    """Remove the sockets of a tap's tapdisk that is gone, and give back its minor. A live one is left alone.

    The minor is given back by `tap-ctl`, which refuses as long as a tapdisk holds the marker's lock. It is given back
    once: afterwards somebody else may have it.
    """
    if not tap.marker.is_symlink():
        return
    marker = await asyncio.to_thread(tap.marker.readlink)
    await asyncio.to_thread(_remove_files, tap, marker)
    try:
        await tap_ctl.free(tap_ctl.minor_of(marker), within=within)
    except TapCtlError as error:
        if error.errno != errno.ENOENT:
            return
    await asyncio.to_thread(tap.marker.unlink, missing_ok=True)


def orphaned(markers: Path) -> list[Path]:
    """The markers of minors that are taken and that no tapdisk serves, a hung one included: that holds its lock.

    Nobody's but for a moment, when they are just being taken or given back; so they are told of and not freed.
    """
    return [marker for marker in sorted(markers.glob("tapdisk-*")) if _is_free(marker)]


def _is_free(marker: Path) -> bool:
    try:
        return not is_locked(marker)
    except FileNotFoundError:  # it was given back
        return False


def _remove_files(tap: TapFolder, marker: Path) -> None:
    try:
        pid = int(tap.pid_file.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return
    folder = marker.parent.parent
    if not _is_dead(folder / f"ctl{pid}"):
        return
    for path in _files_of(pid, tap_ctl.minor_of(marker), folder):
        path.unlink(missing_ok=True)
    shutil.rmtree(_SHARED_MEMORY / f"td3-{pid}", ignore_errors=True)


def _files_of(pid: int, minor: int, folder: Path) -> Iterator[Path]:
    yield from (folder / f"{name}{pid}" for name in ("ctl", "nbdclient"))
    yield from (folder / f"{name}{pid}.{minor}" for name in ("nbd", "nbd-old", "nbdserver", "nbdserver-new"))
    yield _SHARED_MEMORY / "metrics" / f"tap-{pid}-{minor}"


def _is_dead(control: Path) -> bool:
    """Whether nobody listens on a tapdisk's control socket any more: the process id may be another tapdisk's by now."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(control))
        except OSError as error:
            return error.errno in {errno.ECONNREFUSED, errno.ENOENT}
    return False
