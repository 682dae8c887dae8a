"""Where sources may be: the operator's image pools and block devices, and nothing else of the host.

A definition's path is only ever resolved below a pool, by the kernel, with no link followed and no mount crossed
(openat2(2)), so that neither its author nor whoever can write in the pool leads us elsewhere, at whatever moment.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from reconcilers import block_layer
from reconcilers.errors import DiskError
from reconcilers.host_tree import open_folder
from reconcilers.openat2 import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)
from reconcilers.reason import Reason

DEVICES = Path("/dev")
"""Where block devices are looked for. It is no pool: a regular file in it is no image."""

_IN_POOL = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_POOL_IN_POOL = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
# The names below /dev are root's, links and all; which device it is decides, not what it is called.
_IN_DEV = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS

_POOL_FAILURES = {
    errno.EACCES: Reason.PERMISSION_DENIED,
    errno.EPERM: Reason.PERMISSION_DENIED,
    errno.ELOOP: Reason.OUTSIDE_POOLS,
    errno.EXDEV: Reason.OUTSIDE_POOLS,
}
"""Any other is a pool that is not there."""

_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """What of the host guests may be given.

    Attributes:
        folders: Absolute paths of the folders whose files may be images.
        devices: Patterns of block devices, as `/dev/sd*` or `/dev/mapper/guests-*`; see `PurePath.match`.
        hard_links: Files that have further names may be images.
        private: The agent's own folders. What is in them is never an image, unless the pool itself lies in there.
    """

    folders: tuple[Path, ...]
    devices: tuple[str, ...] = ()
    hard_links: bool = False
    private: tuple[Path, ...] = ()

    def allow_device(self, path: str, rdev: int) -> None:
        """Refuse a block device that no pattern names, by what the kernel calls it.

        Raises:
            DiskError: DeviceNotAllowed.
        """
        names = block_layer.names(rdev)
        if not any(PurePosixPath(name).match(pattern) for name in names for pattern in self.devices):
            called = " or ".join(name for name in names if name != path)
            allowed = ", ".join(self.devices) or "none"
            message = (
                f"source {path}{f' is {called}, which' if called else ''} is not among the block devices that guests "
                f"may have (images.devices: {allowed}); use another one, or have the host's operator add it there"
            )
            raise DiskError(Reason.DEVICE_NOT_ALLOWED, message)


def open_below(pools: Pools, path: str, *, folder: bool = False) -> tuple[int, Path]:
    """Resolve a path to an O_PATH descriptor, which opens nothing: a FIFO or tape sees no reader.

    Args:
        pools: Where it must lead to.
        path: As a definition has it.
        folder: It must be a folder.

    Returns:
        The descriptor, for the caller to close, and the pool that it is in, or `DEVICES`.

    Raises:
        DiskError: InvalidSource, OutsidePools or ImageMissing.
        OSError: The kernel can't say what is there.
    """
    wanted = _absolute(path)
    base = max((each for each in (*pools.folders, DEVICES) if _is_below(wanted, str(each))), key=_depth, default=None)
    if base is None:
        raise outside(path, pools, "is in no image pool")
    flags, rules = os.O_PATH | (os.O_DIRECTORY if folder else 0), _IN_POOL if base in pools.folders else _IN_DEV
    pool_fd = _open_pool(pools, base)
    try:
        try:
            fd = openat2(pool_fd, wanted[len(str(base)) :].strip("/") or ".", flags, rules)
        except OSError as error:
            raise _not_resolved(path, base, error) from error
        try:
            _refuse_private(path, pools, fd, pool_fd)
        except BaseException:
            os.close(fd)
            raise
    finally:
        os.close(pool_fd)
    return fd, base


@contextmanager
def opened_below(pools: Pools, path: str, *, folder: bool = False) -> Iterator[int]:
    """As `open_below`, closed at the end of the block."""
    fd, _ = open_below(pools, path, folder=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_pool(pools: Pools, pool: Path) -> int:
    """The pool's folder. The path to it is the operator's; that through another pool is not, for guests write there."""
    outer = min((each for each in pools.folders if _is_below(str(pool), str(each))), key=_depth, default=pool)
    try:
        fd = open_folder(outer)
        if outer == pool:
            return fd
        try:
            return openat2(fd, str(pool.relative_to(outer)), os.O_PATH | os.O_DIRECTORY, _POOL_IN_POOL)
        finally:
            os.close(fd)
    except OSError as error:
        message = f"image pool {pool}: {error.strerror}; create or mount the folder, or mend images.pools"
        raise DiskError(_POOL_FAILURES.get(error.errno or 0, Reason.IMAGE_MISSING), message) from error


def _absolute(path: str) -> str:
    """The path with nothing in it that means nothing. By hand, as every look at a disk comes by here."""
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not path.startswith("/") or "\0" in path or ".." in parts:
        message = f"source {path!r} is not an absolute path without '..'; name the image by its path in a pool"
        raise DiskError(Reason.INVALID_SOURCE, message)
    return "/" + "/".join(parts)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder if folder.endswith("/") else f"{folder}/")


def _depth(path: Path) -> int:
    return len(path.parts)


def _refuse_private(path: str, pools: Pools, fd: int, pool_fd: int) -> None:
    # What the kernel calls them: a pool may have been named by way of a link.
    place, pool = (os.readlink(f"/proc/self/fd/{each}") for each in (fd, pool_fd))  # noqa: PTH115 - hot
    for folder in map(str, pools.private):
        if _is_below(place, folder) and not _is_below(pool, folder):
            raise outside(path, pools, f"is in {folder}, where the agent keeps its own things")


def _not_resolved(path: str, base: Path, error: OSError) -> Exception:
    if error.errno in _NOWHERE:
        return DiskError(Reason.IMAGE_MISSING, f"source {path}: {error.strerror}; create the image or mend the path")
    if error.errno == errno.ELOOP:
        message = f"source {path} leads over a symbolic link, and in image pools none is followed; name the file itself"
        return DiskError(Reason.OUTSIDE_POOLS, message)
    if error.errno == errno.EXDEV:
        message = (
            f"source {path} leads out of {base}, or is on another mount than {base} itself; name a file in the pool, "
            "or have the host's operator add the mount point to images.pools"
        )
        return DiskError(Reason.OUTSIDE_POOLS, message)
    return error


def outside(path: str, pools: Pools, why: str) -> DiskError:
    """The refusal of a source that is where no image may be."""
    folders = ", ".join(map(str, pools.folders)) or "none"
    message = f"source {path} {why} (images.pools: {folders}); move the image there, or have the host's operator add it"
    return DiskError(Reason.OUTSIDE_POOLS, message)
