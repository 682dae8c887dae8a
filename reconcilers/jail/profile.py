"""The two jails that there are, and what a program needs in one."""

import os
import resource
import shutil
import subprocess
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from reconcilers.jail.filter import SystemCalls, system_calls
from reconcilers.jail.order import Order

_DAC_OVERRIDE, _SYS_ADMIN = 1, 21  # linux/capability.h

_NOBODY = 65534

LIMITS = [
    # All that is mapped, the stacks of idle threads and the allocator's reservations included: several times what a
    # server was ever seen with, and an end to one that went wild.
    (resource.RLIMIT_AS, 16 << 30),
    (resource.RLIMIT_NOFILE, 64),
    (resource.RLIMIT_CORE, 0),  # a core file would have the guest's data
]


class Jail(StrEnum):
    """What the settings say about hosts that can't give the whole jail."""

    REQUIRE = "require"
    BEST_EFFORT = "best-effort"


def order(
    command: list[str],
    *,
    mount_point: Path | None,
    io_uring: bool = False,
    connects_to: str | None = None,
    jail: Jail = Jail.REQUIRE,
    fields: Mapping[str, str] | None = None,
    held: Path | None = None,
    record: Path | None = None,
) -> Order:
    """An order for a server.

    Args:
        command: The program's name and its arguments.
        mount_point: Where it mounts its FUSE export. That needs CAP_SYS_ADMIN, over its own namespaces alone, and user
            0, since FUSE lets only the server's user at an export. None: it runs as nobody, may mount nothing, and
            Landlock holds it to its files.
        io_uring: Whether it may use that interface; it is a large one.
        connects_to: Path of the unix socket that it may connect to, if there is one.
        jail: What to do if a piece of the jail can't be had.
        fields: See `Order`.
        held: See `Order`.
        record: See `Order`.

    Raises:
        FileNotFoundError: The host lacks the program.
    """
    program = shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    libraries, folders = _libraries(program, _version(program))
    mounts = mount_point is not None
    groups = SystemCalls.SERVER
    groups |= SystemCalls.MOUNT if mounts else 0
    groups |= SystemCalls.IO_URING if io_uring else 0
    groups |= SystemCalls.CONNECT if connects_to else 0
    return Order(
        program=program,
        arguments=command,
        environment={"LD_LIBRARY_PATH": folders},
        files=[program, *libraries, *(["/dev/fuse"] if mounts else []), *([connects_to] if connects_to else [])],
        mount_point=str(mount_point) if mounts else "",
        user=0 if mounts else _NOBODY,
        # An image may be anyone's, and opening it once more by way of /proc/self/fd asks for permission again. In the
        # jail there is nothing else that it would open.
        capabilities=[_DAC_OVERRIDE, _SYS_ADMIN] if mounts else [_DAC_OVERRIDE],
        limits=LIMITS,
        landlocked=not mounts,
        system_calls=system_calls(groups),
        strict=jail is Jail.REQUIRE,
        fields=dict(fields or {}),
        held=str(held or ""),
        record=str(record or ""),
        daemon=[],
    )


def daemon_order(command: list[str], *, asked_by: list[str], fields: Mapping[str, str]) -> Order:
    """An order for a server that another program starts, and that opens and makes files by name.

    Args:
        command: The other program's name and its arguments; see `Order.daemon`.
        asked_by: See there, too.
        fields: See `Order`.

    Raises:
        FileNotFoundError: The host lacks the program.
    """
    program, asks = (shutil.which(words[0]) for words in (command, asked_by))
    if program is None or asks is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    return Order(
        program=program,
        arguments=command,
        environment={"PATH": os.environ.get("PATH", os.defpath)},
        files=[],
        mount_point="",
        user=0,
        capabilities=[_DAC_OVERRIDE],
        limits=[(resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY)],
        landlocked=False,
        system_calls=b"",
        strict=False,
        fields=dict(fields),
        held="",
        record="",
        daemon=[asks, *asked_by[1:]],
    )


def _version(program: str) -> tuple[int, int]:
    facts = os.stat(program)  # noqa: PTH116 - on a hot path
    return facts.st_ino, facts.st_mtime_ns


@lru_cache(maxsize=8)
def _libraries(program: str, version: tuple[int, int]) -> tuple[list[str], str]:
    """What the dynamic loader would load for it, the loader too (ldd(1)), and the folders that these are in.

    Asked anew when the program has changed.
    """
    del version
    ldd = ["ldd", program]
    answer = subprocess.run(ldd, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # nosec B607
    words = answer.stdout.decode("utf-8", "replace").split()
    libraries = sorted({word for word in words if word.startswith("/")})
    return libraries, ":".join(sorted({str(Path(each).parent) for each in libraries}))
