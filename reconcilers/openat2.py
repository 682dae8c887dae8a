"""openat2(2): open a path below a folder and nowhere else, whatever somebody changes on the way meanwhile.

The C library of Debian 12 has no function for it. Number and structure are the same on every architecture
(asm-generic/unistd.h, linux/openat2.h).
"""

import ctypes
import errno
import os

RESOLVE_NO_XDEV = 0x01
"""Cross no mount point, bind mounts included (ELOOP and EXDEV tell what stood in the way)."""
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
"""The folder is `/` for the path and for every link on it."""

_OPENAT2 = 437
_ATTEMPTS = 8  # EAGAIN: something was renamed meanwhile, so that the kernel could not be sure about a `..`

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    """struct open_how."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(folder_fd: int, path: str, flags: int, resolve: int) -> int:
    """Open `path`, which is relative to the open folder, under the rules of `resolve`. The descriptor is ours to close.

    Raises:
        OSError: ELOOP for a link that may not be followed, EXDEV for a way out of the folder or into another mount,
            ENOSYS from a kernel before 5.6, and what open(2) says.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    for _ in range(_ATTEMPTS):
        arguments = (ctypes.c_int(folder_fd), os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)))
        fd = int(_libc.syscall(ctypes.c_long(_OPENAT2), *arguments))
        if fd >= 0:
            return fd
        if ctypes.get_errno() not in {errno.EAGAIN, errno.EINTR}:
            break
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def why_not() -> str | None:
    """Why the kernel can't open below a folder only; None if it can."""
    folder = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(openat2(folder, ".", os.O_PATH, RESOLVE_BENEATH))
    except OSError as error:
        return f"openat2: {error.strerror}"
    finally:
        os.close(folder)
    return None
