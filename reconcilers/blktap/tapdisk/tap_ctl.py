"""The program `tap-ctl`, one method for each of its subcommands that we need.

None of its questions has a time limit of its own (a stopped tapdisk lets it wait for ever, and a tapdisk that can't
start lets `spawn` try again for ever), so each call has one. Its exit status is an errno, and the text that goes with
it stands on standard error. An unknown subcommand ends with 0.
"""

import asyncio
import errno
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from reconcilers.blktap.tapdisk.listing import Entry, parse

PROGRAM = "tap-ctl"

_MARKER = re.compile(r"(/.+)/tapdisk-(\d+)")


class TapCtlError(Exception):
    """A subcommand failed.

    Attributes:
        errno: Its exit status; ETIMEDOUT if it did not end in time, EPROTO if what it printed makes no sense.
    """

    def __init__(self, subcommand: str, code: int, text: str) -> None:
        super().__init__(f"tap-ctl {subcommand}: {text or os.strerror(code)} (errno {code})")
        self.errno = code


def is_installed() -> bool:
    """Whether the host has the program."""
    return shutil.which(PROGRAM) is not None


async def allocate(*, within: float) -> Path:
    """Take a free minor; its marker, `<folder>/tapdisk-<minor>`, in the folder of all markers."""
    printed = await _run("allocate", within=within)
    if not _MARKER.fullmatch(printed.strip()):
        raise TapCtlError("allocate", errno.EPROTO, f"it printed {printed!r} instead of a marker")
    return Path(printed.strip())


def minor_of(marker: Path) -> int:
    """The number that a marker stands for."""
    return int(marker.name.removeprefix("tapdisk-"))


SPAWN = [PROGRAM, "spawn"]
"""Starts a tapdisk that serves nothing yet and inherits all descriptors, and prints its process id."""

LIST_ONE = [PROGRAM, "list", "-p"]
"""Asks the tapdisk whose process id stands behind it, and no other."""


async def attach(pid: int, minor: int, *, within: float) -> None:
    """Give a tapdisk a minor."""
    await _run("attach", *_who(pid, minor), within=within)


async def open_image(pid: int, minor: int, kind: str, path: str, *, read_only: bool, within: float) -> None:
    """Let a tapdisk open an image under a minor."""
    await _run("open", *_who(pid, minor), "-a", f"{kind}:{path}", *(["-R"] if read_only else []), within=within)


async def entries_of(pid: int, *, within: float) -> list[Entry]:
    """What one tapdisk serves. Others are not asked, so none of them can hold this up."""
    return [entry for entry in parse(await _run("list", "-p", str(pid), within=within)) if entry.pid == pid]


async def pause(pid: int, minor: int, *, within: float) -> None:
    """Finish what is under way, let the image go and keep new requests waiting."""
    await _run("pause", *_who(pid, minor), within=within)


async def unpause(pid: int, minor: int, *, within: float) -> None:
    """Take the image up again."""
    await _run("unpause", *_who(pid, minor), within=within)


async def close(pid: int, minor: int, *, within: float) -> None:
    """Finish what is under way and let the image go for good."""
    await _run("close", *_who(pid, minor), within=within)


async def detach(pid: int, minor: int, *, within: float) -> None:
    """Take a minor from a tapdisk, which ends when it has none."""
    await _run("detach", *_who(pid, minor), within=within)


async def free(minor: int, *, within: float) -> None:
    """Give a minor back; EAGAIN if a tapdisk has it."""
    await _run("free", "-m", str(minor), within=within)


def _who(pid: int, minor: int) -> tuple[str, ...]:
    return "-p", str(pid), "-m", str(minor)


async def _run(subcommand: str, *arguments: str, within: float) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            subcommand,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise TapCtlError(subcommand, error.errno or errno.EIO, f"it can't be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(within):
            out, text = await process.communicate()
    except TimeoutError as error:
        raise TapCtlError(subcommand, errno.ETIMEDOUT, f"no answer within {within:g} s") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        raise TapCtlError(subcommand, process.returncode, text.decode("utf-8", "replace").strip())
    return out.decode("utf-8", "surrogateescape")
