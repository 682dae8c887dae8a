"""What a server that a guest took over would try. Run by a bare interpreter in a jail; prints what came of each.

Called with a JSON object: the tester's process id, the port of a listener on loopback, its abstract unix socket, the
host file `secret`, the folder of another tap, and what to try. All of it is for a jail alone: much of it does harm
where nothing stops it.
"""

# ruff: noqa: PTH208, T201 (of a bare interpreter little can be loaded)
import ctypes
import errno
import json
import os
import resource
import socket
import sys
from collections.abc import Callable

AIMS = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {  # x86_64 and, where it has another, aarch64
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "pidfd_open": (434, 434),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "setns": (308, 268),
    "unshare": (272, 97),
    "clone3": (435, 435),
}


def checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def call(name: str, *arguments: int) -> None:
    number = NUMBERS[name][os.uname().machine == "aarch64"]
    checked(libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))


def mount(source: bytes, target: bytes, kind: bytes, flags: int) -> None:
    checked(libc.mount(source, target, kind, ctypes.c_ulong(flags), None))


def connect(address: tuple[str, int] | str) -> None:
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family) as one:
        one.connect(address)


def write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


TRIES: dict[str, Callable[[], object]] = {
    "read a file of the host": lambda: os.open(AIMS["secret"], os.O_RDONLY),
    "read /etc/shadow": lambda: os.open("/etc/shadow", os.O_RDONLY),
    "look into another tap's folder": lambda: os.listdir(AIMS["other_tap"]),
    "see another process": lambda: os.listdir(f"/proc/{AIMS['tester']}"),
    "see init's files": lambda: os.listdir("/proc/1/root/"),
    "leave by ..": lambda: os.open("/../../etc/shadow", os.O_RDONLY),
    "leave by a descriptor": lambda: os.open("/proc/self/fd/1/../../../etc/shadow", os.O_RDONLY),
    "connect to loopback": lambda: connect(("127.0.0.1", AIMS["port"])),
    "connect to an abstract socket": lambda: connect("\0" + AIMS["abstract"]),
    "make a device node": lambda: os.mknod("/tmp/sda", 0o60600, os.makedev(8, 0)),
    "write into a library": lambda: write(f"/lib/{os.uname().machine}-linux-gnu/libc.so.6"),
    "write into its root": lambda: write("/x"),
    "mount the processes": lambda: mount(b"proc", b"/tmp", b"proc", 6),
    "mount the devices": lambda: mount(b"dev", b"/tmp", b"devtmpfs", 6),
    "mount sysfs": lambda: mount(b"sysfs", b"/tmp", b"sysfs", 6),
    "mount with devices": lambda: mount(b"tmpfs", b"/tmp", b"tmpfs", 0),
    "make a mount writable": lambda: mount(b"", b"/", b"", 32 | 4096),
    "kill the agent": lambda: os.kill(AIMS["tester"], 0),
    "hold up the agent": lambda: os.setpriority(os.PRIO_PROCESS, AIMS["tester"], 0),
    "limit the agent": lambda: resource.prlimit(AIMS["tester"], resource.RLIMIT_NOFILE),
    "trace the agent": lambda: call("ptrace", 0x4206, AIMS["tester"], 0, 0),
    "read the agent's memory": lambda: call("process_vm_readv", AIMS["tester"], 0, 0, 0, 0, 0),
    "take a handle on the agent": lambda: call("pidfd_open", AIMS["tester"], 0),
    "have the keys": lambda: call("keyctl", 0, -3, 0, 0, 0),
    "load a kernel": lambda: call("kexec_load", 0, 0, 0, 0),
    "load a module": lambda: call("init_module", 0, 0, 0),
    "open by handle": lambda: call("open_by_handle_at", 0, 0, 0),
    "watch the machine": lambda: call("perf_event_open", 0, -1, 0, -1, 0),
    "load a program into the kernel": lambda: call("bpf", 0, 0, 0),
    "handle page faults": lambda: call("userfaultfd", 0),
    "have a ring": lambda: call("io_uring_setup", 1, 0),
    "clone a mount": lambda: call("open_tree", -100, 0, 0),
    "make a file system": lambda: call("fsopen", 0, 0),
    "enter a namespace": lambda: call("setns", 0, 0),
    "make a namespace": lambda: call("unshare", 0x10000000),
    "make a process behind the filter's back": lambda: call("clone3", 0, 0),
    "have a core file": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
    "have more files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (65, 65)),
}


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    except ValueError as error:  # setrlimit(2) says EPERM, and Python this
        return str(error)
    return "done"


def root() -> list[str]:
    try:
        return sorted(os.listdir("/"))
    except OSError:
        return []


tried = {name: outcome(attempt) for name, attempt in TRIES.items() if name in (AIMS["try"] or TRIES)}
print(json.dumps({"/": root()} | tried))
