"""The system calls that a jail is made of and Python lacks, by way of the C library. Each raises OSError.

Calls from number 424 on have that number on every architecture (asm-generic/unistd.h).
"""

import ctypes
import errno
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MNT_DETACH = 2
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION = 1

_PR_SET_CHILD_SUBREAPER = 36
_PR_CAPBSET_DROP, _PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_CAP_AMBIENT = 24, 28, 38, 22, 47
_PR_CAP_AMBIENT_RAISE = 2
_SECCOMP_MODE_FILTER = 2
_USERS_MEAN_NOTHING = 0x0F  # SECBIT_NOROOT, _NO_SETUID_FIXUP, locked: neither exec nor setuid gives or takes anything
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _call(number: int, what: str, *arguments: int | bytes) -> int:
    wide = [each if isinstance(each, bytes) else ctypes.c_long(each) for each in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide), what)


def unshare(flags: int) -> None:
    """Leave the namespaces named (man page 2)."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount a new file system, or change a mount (man page 2)."""
    texts = [os.fsencode(text) for text in (source, target, kind)]
    _checked(_libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data)), f"mount {target}")


def unmount(target: str) -> None:
    """umount2(2), lazily."""
    _checked(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"umount {target}")


def pivot_root() -> None:
    """Make the current folder the root, and take what was the root away (pivot_root(2))."""
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def clone_mount(path: str) -> int:
    """open_tree(2): a descriptor of a mount of `path` alone that is nowhere yet."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    return _call(_OPEN_TREE, f"open_tree {path}", _AT_FDCWD, os.fsencode(path), flags)


def restrict_mount(fd: int, attributes: int) -> None:
    """mount_setattr(2): add MOUNT_ATTR_* to the mount at `fd`."""
    request = struct.pack("=4Q", attributes, 0, 0, 0)
    _call(_MOUNT_SETATTR, "mount_setattr", fd, b"", _AT_EMPTY_PATH, request, len(request))


def place_mount(fd: int, target: str) -> None:
    """move_mount(2): have the mount at `fd` be seen at `target`."""
    _call(_MOVE_MOUNT, f"move_mount {target}", fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)


def no_new_privileges() -> None:
    """PR_SET_NO_NEW_PRIVS(2const)."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def adopt_orphans() -> None:
    """PR_SET_CHILD_SUBREAPER(2const): a process below us whose parent ends becomes our child."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "child subreaper")


def become(user: int) -> None:
    """Be the user and group of that number, in no other group, with the capabilities that there are."""
    _checked(_libc.prctl(_PR_SET_SECUREBITS, _USERS_MEAN_NOTHING, 0, 0, 0), "securebits")
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def keep_capabilities(kept: list[int]) -> None:
    """Have these capabilities and no others, over exec too (capabilities(7))."""
    for number in range(64):
        if number not in kept and _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            if ctypes.get_errno() == errno.EINVAL:  # behind the last that the kernel knows
                break
            _checked(-1, "capability bounding set")
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, struct.pack("=6I", low, low, low, high, high, high)), "capset")
    for number in kept:
        _checked(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0), "ambient capability")


def filter_system_calls(program: bytes) -> None:
    """PR_SET_SECCOMP(2const) with an array of struct sock_filter."""
    memory = ctypes.create_string_buffer(program, len(program))
    request = struct.pack("@HP", len(program) // 8, ctypes.addressof(memory))  # struct sock_fprog
    _checked(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, request, 0, 0), "seccomp")


def landlock_version() -> int:
    """The version of Landlock's interface."""
    return _call(_LANDLOCK_CREATE, "landlock", 0, 0, _LANDLOCK_VERSION)


def landlock_ruleset(files: int, network: int, scopes: int) -> int:
    """A descriptor of a new ruleset that forbids these uses of files and network, and reaching out of these scopes."""
    request = struct.pack("=3Q", files, network, scopes)  # an older kernel takes what it does not know if it is zero
    return _call(_LANDLOCK_CREATE, "landlock_create_ruleset", request, len(request), 0)


def landlock_allow(ruleset: int, parent: int, files: int) -> None:
    """Allow these uses of what is at and beneath the open `parent`."""
    _call(_LANDLOCK_ADD, "landlock_add_rule", ruleset, 1, struct.pack("=Qi", files, parent), 0)


def landlock_restrict(ruleset: int) -> None:
    """Let the ruleset hold from now on."""
    _call(_LANDLOCK_RESTRICT, "landlock_restrict_self", ruleset, 0)
