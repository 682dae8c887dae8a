"""The system calls that a server may make, as a seccomp program made by libseccomp.

An allow-list: what is not on it answers "no such call", so that a newer C library takes an older way. None of these
calls names another process, opens a socket (but where asked for), or makes a namespace.
"""

import ctypes
import errno
import os
import socket
from enum import IntFlag
from functools import lru_cache


class SystemCalls(IntFlag):
    """Groups of calls."""

    SERVER = 1
    MOUNT = 2
    IO_URING = 4
    CONNECT = 8


_SERVER_NAMES = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3 pipe2
    open openat stat lstat fstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat
    getdents64 getcwd umask unlink unlinkat
    fcntl flock ioctl fsync fdatasync sync_file_range fallocate ftruncate fadvise64 readahead copy_file_range splice
    io_setup io_submit io_getevents io_pgetevents io_cancel io_destroy
    mmap munmap mprotect mremap madvise brk mlock munlock msync membarrier
    poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
    eventfd2 signalfd4 timerfd_create timerfd_settime timerfd_gettime
    accept accept4 listen getsockname getpeername getsockopt setsockopt shutdown
    recvfrom recvmsg recvmmsg sendto sendmsg sendmmsg
    futex futex_waitv set_robust_list get_robust_list rseq set_tid_address exit exit_group wait4 waitid sched_yield
    sched_getaffinity getcpu
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigpending rt_sigsuspend sigaltstack restart_syscall
    getpid getppid gettid getpgrp getuid geteuid getgid getegid getresuid getresgid getgroups
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage getrlimit sysinfo uname
    getrandom arch_prctl execve
"""
_MOUNT_NAMES = "umount2"
_CONNECT_NAMES = "connect"
_IO_URING_NAMES = "io_uring_setup io_uring_enter io_uring_register"

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_MASKED_EQUAL, _EQUAL = 7, 4  # enum scmp_compare
_NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW*
_NOSUID_NODEV, _MOUNT_FLAGS_OF_FUSE = 2 | 4, 1 | 2 | 4 | 8 | 16 | 1024  # with RDONLY, NOEXEC, SYNCHRONOUS, NOATIME
_OF_OURSELVES = 0
_HARMLESS_PRCTLS = (15, 16, 22, 38, 21)  # PR_SET_NAME, PR_GET_NAME, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, …


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


@lru_cache(maxsize=8)
def system_calls(groups: int) -> bytes:
    """The filter for these groups, an array of struct sock_filter; empty if the host lacks libseccomp."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return b""
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ERRNO | errno.ENOSYS)))
    try:
        rules = _Rules(library, context)
        for name in _names(groups):
            rules.allow(name)
        # clone3 has its flags in memory, where no filter sees them; without it the C library takes clone.
        rules.allow("clone", _Comparison(0, _MASKED_EQUAL, _NEW_NAMESPACES, 0))
        rules.allow("prlimit64", _Comparison(0, _EQUAL, _OF_OURSELVES))
        for which in _HARMLESS_PRCTLS:
            rules.allow("prctl", _Comparison(0, _EQUAL, which))
        if groups & SystemCalls.CONNECT:
            rules.allow("socket", _Comparison(0, _EQUAL, socket.AF_UNIX))
        if groups & SystemCalls.MOUNT:
            # A new mount of something without devices and set-user-id programs, and no change of another mount.
            mask = 0xFFFFFFFF & ~_MOUNT_FLAGS_OF_FUSE | _NOSUID_NODEV
            rules.allow("mount", _Comparison(3, _MASKED_EQUAL, mask, _NOSUID_NODEV))
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _names(groups: int) -> list[str]:
    texts = {
        SystemCalls.SERVER: _SERVER_NAMES,
        SystemCalls.MOUNT: _MOUNT_NAMES,
        SystemCalls.IO_URING: _IO_URING_NAMES,
        SystemCalls.CONNECT: _CONNECT_NAMES,
    }
    return [name for group, text in texts.items() if groups & group for name in text.split()]


class _Rules:
    """Adds rules to a filter; calls that this architecture lacks are passed over."""

    def __init__(self, library: ctypes.CDLL, context: ctypes.c_void_p) -> None:
        self._library = library
        self._context = context

    def allow(self, name: str, *comparisons: _Comparison) -> None:
        """Allow a call where all comparisons hold."""
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return
        array = (_Comparison * len(comparisons))(*comparisons)
        code = self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(_ALLOW), number, len(comparisons), array
        )
        if code:
            raise OSError(-code, f"seccomp rule for {name}: {os.strerror(-code)}")


def _exported(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    fd = os.memfd_create("seccomp")
    try:
        if code := library.seccomp_export_bpf(context, fd):
            raise OSError(-code, f"seccomp: {os.strerror(-code)}")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
