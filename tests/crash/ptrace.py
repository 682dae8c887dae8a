"""Stops a process, all its threads and none of its children, before each system call it makes (ptrace(2)).

The calls are seen one after the other, whatever thread makes them, so "before the third rename" is an exact moment.
"""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SYSCALL, _SEIZE, _INTERRUPT, _GET_SYSCALL_INFO = 24, 0x4206, 0x4207, 0x420E
_TRACE_SYSTEM_GOOD, _TRACE_CLONE = 1, 8  # not FORK and VFORK: what the process starts goes free
_EVENTS = {3, 128}  # a new thread; a stop of the tracer's own making
_WALL = 0x40000000
_ENTRY = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_seccomp = ctypes.CDLL("libseccomp.so.2")
_seccomp.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p  # malloc'ed; one for each kind of call is kept
_names: dict[int, str] = {}


class _Info(ctypes.Structure):
    """struct ptrace_syscall_info, as far as an entry goes."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    )


@dataclass(frozen=True, slots=True)
class SystemCall:
    """A call about to be made by a process that is stopped in front of it."""

    pid: int
    name: str
    args: tuple[int, ...]

    def fd(self, index: int) -> str:
        """What the descriptor in an argument refers to: a path, or as in `socket:[7]`."""
        with suppress(OSError):
            return str(Path(f"/proc/{self.pid}/fd/{ctypes.c_int(self.args[index]).value}").readlink())
        return "closed"

    def path(self, index: int, *, at: int | None = None) -> str:
        """The path in an argument; `at` is the argument with the folder's descriptor, if there is one."""
        path = os.fsdecode(self.bytes(index, 4096).partition(b"\0")[0])
        if path.startswith("/") or at is None or ctypes.c_int(self.args[at]).value < 0:
            return path
        return f"{self.fd(at)}/{path}"

    def bytes(self, index: int, length: int) -> bytes:
        """Memory that an argument points to; less if it ends."""
        return _memory(self.pid, self.args[index], length)


def _memory(pid: int, address: int, length: int) -> bytes:
    data = b""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        while len(data) < length:
            page_left = 4096 - (address + len(data)) % 4096
            memory.seek(address + len(data))
            try:
                data += memory.read(min(page_left, length - len(data)))
            except OSError:
                break
    return data


def watch(pid: int, look: Callable[[SystemCall], bool], ready: Callable[[], None]) -> None:
    """Have `look` see each system call of a process before it is made, until the process ends.

    Args:
        pid: Any process but a child of ours that is waited for otherwise.
        look: Says whether the process may go on; else it is killed there and then, and the call is not made.
        ready: Called once nothing can be missed any more.
    """
    threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    for thread in threads:
        _ptrace(_SEIZE, thread, _TRACE_SYSTEM_GOOD | _TRACE_CLONE)
        _ptrace(_INTERRUPT, thread)
    unseen, killed = set(threads), False
    for thread, status in _stops():
        if not os.WIFSTOPPED(status):
            unseen.discard(thread)
            continue
        if not killed and status >> 8 == signal.SIGTRAP | 0x80 and not _may_go_on(pid, thread, look):
            killed = True
            os.kill(pid, signal.SIGKILL)
            continue
        with suppress(ProcessLookupError):
            _ptrace(_SYSCALL, thread, _signal_to_deliver(status))
        if thread in unseen:
            unseen.discard(thread)
            if not unseen:
                ready()


def _stops() -> Iterator[tuple[int, int]]:
    with suppress(ChildProcessError):  # the last thread has ended
        while True:
            yield os.waitpid(-1, _WALL)


def _signal_to_deliver(status: int) -> int:
    number = os.WSTOPSIG(status)
    return 0 if number & 0x80 or status >> 16 in _EVENTS else number


def _may_go_on(pid: int, thread: int, look: Callable[[SystemCall], bool]) -> bool:
    info = _Info()
    try:
        _ptrace(_GET_SYSCALL_INFO, thread, ctypes.addressof(info), ctypes.sizeof(info))
    except ProcessLookupError:
        return True
    if info.op != _ENTRY:
        return True
    return look(SystemCall(pid, _name(info.arch, info.number), tuple(info.args)))


def _name(arch: int, number: int) -> str:
    if number not in _names:
        pointer = _seccomp.seccomp_syscall_resolve_num_arch(ctypes.c_uint32(arch), ctypes.c_int(number))
        name = ctypes.cast(pointer, ctypes.c_char_p).value if pointer else None
        _names[number] = name.decode() if name else f"call {number}"
    return _names[number]


def _ptrace(request: int, thread: int, data: int = 0, size: int = 0) -> None:
    address = size or None
    if _libc.ptrace(request, thread, address, data) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"ptrace {request:#x} of {thread}")
