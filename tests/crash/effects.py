"""Which system calls of the agent change the world, and what each such change is called.

Every call is an effect or is named here as harmless; one that is neither is an error, so that new code can't have an
effect that nobody looks at. A lock that dies with its process is no effect, but the image's are: they may outlive it.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.crash.ptrace import SystemCall

_HARMLESS_NAMES = """
    read pread64 readv close close_range fstat newfstatat stat lstat statx statfs fstatfs lseek readlink readlinkat
    access faccessat faccessat2 getdents64 getcwd chdir fchdir fadvise64 flock dup dup2 dup3 pipe2 umask
    mmap munmap mprotect mremap madvise brk membarrier
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack
    poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 restart_syscall
    futex set_robust_list rseq set_tid_address exit exit_group wait4 waitid pidfd_open
    getpid getppid gettid getpgrp getuid geteuid getgid getegid getrandom uname sysinfo prlimit64 getrusage times
    clock_gettime clock_getres clock_nanosleep gettimeofday nanosleep time
    sched_yield sched_getaffinity arch_prctl prctl
    socket socketpair shutdown getsockname getpeername getsockopt setsockopt accept accept4 recvfrom recvmsg recvmmsg
    openat2 inotify_init1 inotify_add_watch inotify_rm_watch io_uring_setup memfd_create seccomp
"""
_HARMLESS = frozenset(_HARMLESS_NAMES.split())

_PATHS: dict[str, tuple[tuple[int, int | None], ...]] = {  # arguments: a path, and the folder it is relative to
    "mkdir": ((0, None),),
    "mkdirat": ((1, 0),),
    "rmdir": ((0, None),),
    "unlink": ((0, None),),
    "unlinkat": ((1, 0),),
    "rename": ((0, None), (1, None)),
    "renameat": ((1, 0), (3, 2)),
    "renameat2": ((1, 0), (3, 2)),
    "link": ((0, None), (1, None)),
    "linkat": ((1, 0), (3, 2)),
    "symlink": ((0, None), (1, None)),
    "symlinkat": ((0, None), (2, 1)),
    "truncate": ((0, None),),
    "chmod": ((0, None),),
    "fchmodat": ((1, 0),),
    "chown": ((0, None),),
    "utimensat": ((1, 0),),
    "umount2": ((0, None),),
    "mount": ((0, None), (1, None)),
}
_DESCRIPTORS = ("ftruncate", "fallocate", "fchmod", "fchown", "fsync", "fdatasync", "sync_file_range")
_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")

_IOCTLS = {
    0x4C00: "LOOP_SET_FD",
    0x4C01: "LOOP_CLR_FD",
    0x4C04: "LOOP_SET_STATUS64",
    0x4C06: "LOOP_CHANGE_FD",
    0x4C07: "LOOP_SET_CAPACITY",
    0x4C08: "LOOP_SET_DIRECT_IO",
    0x4C09: "LOOP_SET_BLOCK_SIZE",
    0x4C0A: "LOOP_CONFIGURE",
    0x4C80: "LOOP_CTL_ADD",
    0x4C81: "LOOP_CTL_REMOVE",
    0x125D: "BLKROSET",
}
# Status and sizes of loop devices, terminals, FIONBIO, FIOCLEX, FIONCLEX, FIONREAD.
_HARMLESS_IOCTLS = {0x4C05, 0x4C82, 0x80081272, 0x1268, 0x80081280, 0x5401, 0x5413, 0x5421, 0x5451, 0x5450, 0x541B}
_FCNTLS = {37: "F_OFD_SETLK", 38: "F_OFD_SETLKW", 1024: "F_SETLEASE"}
# F_DUPFD … F_SETLKW, of SQLite, which die with us; F_SETSIG, which is for whoever set it.
_HARMLESS_FCNTLS = {0, 1, 2, 3, 4, 5, 6, 7, 10, 36, 1025, 1030, 1032}
_CLONE_THREAD = 0x10000
_PUBACK = 0x40
_LENGTH_SHIFT_MAX = 21


class UnclassifiedError(Exception):
    """A system call that is neither named as harmless nor known as an effect."""


class Effects:
    """Names effects. Folders and numbers that differ from run to run are replaced by words."""

    def __init__(self, folder: Path) -> None:
        """Args: the folder of the host's own things, which shall not be in a name."""
        self._folder = str(folder)
        self._by_call: dict[str, Callable[[SystemCall], str | None]] = {
            **dict.fromkeys(_PATHS, self._on_paths),
            **dict.fromkeys(_DESCRIPTORS, lambda call: f"{call.name} {self._short(call.fd(0))}"),
            **dict.fromkeys(_WRITES, self._write),
            **dict.fromkeys(("open", "openat"), self._open),
            "sendto": self._send,
            "sendmsg": lambda _: "order a server",  # descriptors go by this call alone
            **dict.fromkeys(("bind", "listen", "connect"), self._socket),
            **dict.fromkeys(
                ("kill", "tkill", "tgkill", "pidfd_send_signal"), lambda call: f"{call.name} {call.args[1]}"
            ),
            **dict.fromkeys(("clone", "clone3", "fork", "vfork"), self._start),
            "ioctl": self._ioctl,
            "fcntl": self._fcntl,
        }

    def name(self, call: SystemCall) -> str | None:
        """What an effect is called; None for a call that has none.

        Raises:
            UnclassifiedError: It is not known which.
        """
        if call.name in _HARMLESS:
            return None
        if call.name not in self._by_call:
            raise UnclassifiedError(f"{call.name}: an effect or harmless? Say so in {Path(__file__).name}")
        return self._by_call[call.name](call)

    def _short(self, path: str) -> str:
        path = path.removeprefix(f"{self._folder}/").removeprefix("run/")
        return re.sub(r"\bloop\d+", "loopN", path)

    def _on_paths(self, call: SystemCall) -> str:
        paths = (self._short(call.path(index, at=at)) for index, at in _PATHS[call.name])
        return f"{call.name} {' '.join(paths)}"

    def _open(self, call: SystemCall) -> str | None:
        first = 0 if call.name == "open" else 1
        if not call.args[first + 1] & (os.O_CREAT | os.O_TRUNC):
            return None
        return f"create {self._short(call.path(first, at=first - 1 if first else None))}"

    def _write(self, call: SystemCall) -> str | None:
        target = call.fd(0)
        if target.startswith("socket:"):
            return self._send(call)
        if not target.startswith("/") or target.startswith("/memfd:") or target == f"{self._folder}/agent.log":
            return None
        if _is_character_device(target):
            return None
        return f"{call.name} {self._short(target)}"

    def _send(self, call: SystemCall) -> str | None:
        data = call.bytes(1, min(call.args[2], 1 << 16))
        if data.startswith(b"{"):
            return f"QMP {json.loads(data)['execute']}"
        # Of MQTT only the acknowledgement counts: what the broker has of it, it does not send again.
        return "MQTT PUBACK" if any(kind == _PUBACK for kind in _packets(data)) else None

    def _socket(self, call: SystemCall) -> str | None:
        if call.name == "listen":
            path = _unix_path(call.fd(0))
            return f"listen {self._short(path)}" if path else None
        address = call.bytes(1, min(call.args[2], 110))
        if int.from_bytes(address[:2], "little") != 1 or len(address) < 3:
            return None
        return f"{call.name} {self._short(os.fsdecode(address[2:].partition(bytes(1))[0]))}"

    def _ioctl(self, call: SystemCall) -> str | None:
        request = call.args[1] & 0xFFFFFFFF
        if request in _HARMLESS_IOCTLS:
            return None
        if request not in _IOCTLS:
            raise UnclassifiedError(f"ioctl {request:#x} on {call.fd(0)}: an effect or harmless?")
        return f"{_IOCTLS[request]} {self._short(call.fd(0))}"

    def _fcntl(self, call: SystemCall) -> str | None:
        if call.args[1] in _HARMLESS_FCNTLS:
            return None
        if call.args[1] not in _FCNTLS:
            raise UnclassifiedError(f"fcntl {call.args[1]} on {call.fd(0)}: an effect or harmless?")
        return f"{_FCNTLS[call.args[1]]} {self._short(call.fd(0))}"

    def _start(self, call: SystemCall) -> str | None:
        flags = int.from_bytes(call.bytes(0, 8), "little") if call.name == "clone3" else call.args[0]
        is_thread = call.name in {"clone", "clone3"} and flags & _CLONE_THREAD
        return None if is_thread else "start a process"


def _packets(data: bytes) -> Iterator[int]:
    """First byte of each MQTT packet in what is sent at once (MQTT v5, section 2.1)."""
    at = 0
    while at < len(data):
        yield data[at]
        length, shift, more = 0, 0, True
        while more and at + 1 < len(data) and shift <= _LENGTH_SHIFT_MAX:
            at += 1
            length |= (data[at] & 0x7F) << shift
            shift, more = shift + 7, bool(data[at] & 0x80)
        at += 1 + length


def _is_character_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)  # noqa: PTH116
    except OSError:
        return False


def _unix_path(socket: str) -> str | None:
    inode = socket.removeprefix("socket:[").removesuffix("]")
    rows = (line.split() for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines())
    return next((row[7] for row in rows if len(row) > 7 and row[6] == inode), None)
