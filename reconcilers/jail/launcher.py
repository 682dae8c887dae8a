"""The agent's side of the launcher process: hands it orders and hears what came of them."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from reconcilers.jail.order import Order

_PROGRAM = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Launched:
    """A process that was started.

    Attributes:
        pid: Its id. It is no child of ours; the launcher process reaps it, or init.
        lacking: Pieces of the jail that could not be had, each with the reason.
    """

    pid: int
    lacking: tuple[str, ...]


class Starter(Protocol):
    """Starts servers that are in a jail and outlive us.

    Attributes:
        watches: Whether they are asked for signs of life, at the descriptor behind those that they inherit.
    """

    watches: bool

    async def launch(self, name: str, order: Order, log_fd: int, descriptors: Sequence[int]) -> Launched:
        """Start a process.

        Args:
            name: What it is called where it has a name; no two have the same at one time.
            order: What is started, and how narrow its jail is.
            log_fd: Where it prints to; open for reading, too.
            descriptors: It inherits them as 3, 4 and so on. Close them afterwards.

        Returns:
            The process, which runs its program by then. Bound the wait with `asyncio.timeout`.

        Raises:
            OSError: It was not started, and why.
        """

    def close(self) -> None:
        """Let go of what starts them; what was started goes on."""


class Launcher:
    """Starts them as session leaders. The launcher process is started when it is first needed."""

    watches = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    async def launch(self, name: str, order: Order, log_fd: int, descriptors: Sequence[int]) -> Launched:
        """See `Starter`."""
        del name
        report, its_end = os.pipe2(os.O_CLOEXEC)
        with os.fdopen(report, "rb", buffering=0) as pipe:
            try:
                await asyncio.to_thread(self._send, order.encode(), [its_end, log_fd, *descriptors])
            finally:
                os.close(its_end)
            return launched(await _read_to_end(pipe.fileno()))

    def close(self) -> None:
        """See `Starter`."""
        with self._lock:
            self._end()

    def _send(self, packet: bytes, descriptors: list[int]) -> None:
        with self._lock:
            try:
                socket.send_fds(self._connected(), [packet], descriptors)
            except (BrokenPipeError, ConnectionResetError):  # it was killed; another does as well
                self._end()
                socket.send_fds(self._connected(), [packet], descriptors)

    def _connected(self) -> socket.socket:
        if self._socket is None:
            ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with its:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_PROGRAM), "serve", str(its.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(its.fileno(),),
                    start_new_session=True,  # a signal to the agent's group is not for what it starts
                )
            self._socket = ours
        return self._socket

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.wait()
            self._process = None


async def _read_to_end(fd: int) -> str:
    """What is written into a pipe until its last writer is gone."""
    os.set_blocking(fd, False)
    loop, parts, ended = asyncio.get_running_loop(), list[bytes](), asyncio.Event()

    def readable() -> None:
        part = os.read(fd, 4096)
        parts.append(part)
        if not part:
            ended.set()

    loop.add_reader(fd, readable)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
    return b"".join(parts).decode("utf-8", "replace")


def launched(report: str) -> Launched:
    """What a whole report says.

    Raises:
        OSError: Nothing was started.
    """
    said: dict[str, list[str]] = {"pid": [], "lacks": [], "failed": []}
    for line in report.splitlines():
        word, _, rest = line.partition(" ")
        said.setdefault(word, []).append(rest)
    if said["failed"] or not said["pid"]:
        raise OSError([*said["failed"], "what starts it ended before it had started the server"][0])
    return Launched(int(said["pid"][-1]), tuple(said["lacks"]))
