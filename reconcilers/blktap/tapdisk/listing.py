"""What `tap-ctl list` prints when its output is no terminal. Pure.

    [pid=DECIMAL] [minor=DECIMAL] [state=HEXADECIMAL] [args=TYPE:PATH]

One blank lies between two fields, and any of them may be absent: a minor that nobody serves has no pid, a tapdisk that
serves nothing has only that. The path comes last and is printed as it is, with its blanks, `=`, `:` and newlines. So
a path can forge lines, and no line proves whose a tapdisk is: that only the lock does which it inherited from us.
"""

import re
from dataclasses import dataclass
from enum import IntFlag


class State(IntFlag):
    """What a tapdisk says of a disk that it serves; nothing at all while it runs."""

    RUNS = 0
    DEAD = 0x1
    CLOSED = 0x2
    QUIESCE_REQUESTED = 0x4
    QUIESCED = 0x8
    PAUSE_REQUESTED = 0x10
    PAUSED = 0x20
    SHUTDOWN_REQUESTED = 0x40
    LOCKING = 0x80
    LOG_DROPPED = 0x100
    RESUME_FAILED = 0x200


@dataclass(frozen=True, slots=True)
class Entry:
    """One line; None for what it lacks. `args` are the image's type and path."""

    pid: int | None = None
    minor: int | None = None
    state: State | None = None
    args: tuple[str, str] | None = None


_LINE = re.compile(
    r"(?:pid=(?P<pid>\d{1,10}))?(?:(?:^|(?<=\d) )minor=(?P<minor>\d{1,10}))?"
    r"(?:(?:^|(?<=\d) )state=(?P<state>0|0x[0-9a-f]{1,8}))?(?:(?:^|(?<=[\da-f]) )args=(?P<type>[^:]*):(?P<path>.*))?",
    re.ASCII,
)


def parse(output: str) -> list[Entry]:
    """The entries of a listing. A line that is none goes on with the path before it; in front of all it is dropped."""
    entries: list[Entry] = []
    for line in output.removesuffix("\n").split("\n") if output else []:
        entry = _entry(line)
        if entry is not None:
            entries.append(entry)
        elif entries and (before := entries[-1]).args is not None:
            kind, path = before.args
            entries[-1] = Entry(before.pid, before.minor, before.state, (kind, f"{path}\n{line}"))
    return entries


def _entry(line: str) -> Entry | None:
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    pid, minor, state, kind, path = found.group("pid", "minor", "state", "type", "path")
    return Entry(
        pid=int(pid) if pid else None,
        minor=int(minor) if minor else None,
        state=State(int(state, 16)) if state else None,
        args=(kind, path) if kind is not None else None,
    )
