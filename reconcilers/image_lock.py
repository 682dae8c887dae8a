"""Locks on an image that QEMU understands and that outlive the agent.

QEMU tells other QEMUs what it does with an image by open-file-description read locks on single bytes
(block/file-posix.c): byte 100+n means "I use permission n", byte 200+n "I do not share permission n".
Such a lock belongs to the open file, so it lives as long as a loop device or a tap holds that file, after our
descriptor is closed and after we die (fcntl_locking(2), "Open file description locks").

Both sides lock first and look afterwards, so of two that come at once at least one sees the other.
"""

import errno
import fcntl
import os
import signal
import struct

from reconcilers.errors import DiskError
from reconcilers.reason import Reason

_USES = 100
_DENIES = 200
_READ, _WRITE, _RESIZE = 0, 1, 3
# No permission of QEMU's, which are bits of 64, so QEMU does not look there. Byte 100 alone does not tell a reader that
# may be kept from the image from a backup that is welcome to read it (qemu-img convert, and anything with -U).
_WRITE_UNSHARED = 64
_USES_AND_DENIES: dict[tuple[bool, bool], tuple[set[int], set[int]]] = {  # by read-only and shareable
    (True, False): ({_READ}, {_WRITE, _RESIZE}),
    (True, True): ({_READ}, {_WRITE_UNSHARED}),
    (False, True): ({_READ, _WRITE, _RESIZE}, set()),
    (False, False): ({_READ, _WRITE, _RESIZE, _WRITE_UNSHARED}, {_WRITE, _RESIZE}),
}
_FLOCK = "hhqqi4x"  # struct flock on 64-bit: l_type, l_whence, l_start, l_len, l_pid
_TO_THE_END = 0


def _flock(kind: int, first: int, length: int = 1) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, first, length, 0)


def _held_by_another(fd: int, first: int, length: int = 1) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, first, length))
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _any_held_by_another(fd: int, places: list[int]) -> bool:
    """Mostly nobody has a lock in that whole stretch of the file, which takes one question."""
    first = min(places)
    return _held_by_another(fd, first, max(places) + 1 - first) and any(_held_by_another(fd, one) for one in places)


def _unshared_writer(fd: int) -> bool:
    """Whether somebody writes and lets nobody else write; no two can do one each, and this is how QEMU says it."""
    return all(_held_by_another(fd, one) for one in (_USES + _WRITE, _DENIES + _WRITE))


def _in_the_way(fd: int, uses: set[int], denies: set[int]) -> bool:
    clash = _any_held_by_another(fd, [_DENIES + n for n in uses] + [_USES + n for n in denies])
    return clash or (_WRITE_UNSHARED in denies and _unshared_writer(fd))


def lock_image(fd: int, *, read_only: bool, shareable: bool) -> bool:
    """Lock the image open at `fd` (readable) for as long as that open file lives.

    Args:
        fd: A descriptor of the image; keep it, or hand it to what shall hold the lock.
        read_only: We only read; other readers are welcome, writers are not.
        shareable: Others that say so too may also write, and nobody else.

    Returns:
        True if the image is ours; False if somebody else uses it in a way that does not go with ours. The
        open file has no lock then: to find out who that is takes long on a busy host, and of several that want
        one image each would keep all others from it meanwhile.

    Raises:
        DiskError: KernelError if the file system has no such locks.
    """
    uses, denies = _USES_AND_DENIES[read_only, shareable]
    try:
        for byte in [_USES + n for n in uses] + [_DENIES + n for n in denies]:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, byte))
        alone = not _in_the_way(fd, uses, denies)
    except OSError as error:
        if error.errno not in {errno.EAGAIN, errno.EACCES}:
            raise DiskError(
                Reason.KERNEL_ERROR,
                f"the image's file system gives no locks ({error.strerror}), so a second user could not be kept out; "
                "move the image to a file system with open-file-description locks",
            ) from error
        alone = False  # an exclusive lock: nobody who speaks QEMU's way
    if not alone:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, 0, _TO_THE_END))
    return alone


def sole_opener(fd: int) -> bool:
    """Whether nobody else on this host has the file open, in constant time.

    A write lease is granted only if the lessee's is the only open file on the inode (fs/locks.c,
    `check_conflicting_open`), loop devices included; it is given back at once. False where the file system has
    no leases: then the caller must look for itself.

    Whoever opens the file in between has the kernel send the lessee a signal. That is SIGIO, which kills, unless it was
    set before the lease to another (fcntl(2), F_SETSIG): SIGURG, which is ignored. With the lease the setting goes too.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def used_by_another(fd: int, *, read_only: bool = False, shareable: bool = False) -> bool:
    """Whether somebody has locked the image open at `fd` in a way that does not go with such a use of it.

    Only asked, so that whoever is to use it can lock it. A guest changes no size, so nobody minds if others deny that.
    """
    uses, denies = _USES_AND_DENIES[read_only, shareable]
    return _in_the_way(fd, uses - {_RESIZE}, denies)
