"""What looks after a server in its unit: passes its signs of life on to systemd, and its words to the journal.

systemd kills the unit when they stop coming (WatchdogSec= in tapster-tap@.service), whether or not there is an agent.
A sign of life is the answer of the server's main loop, which all requests go through: on a QMP monitor of its own, or
to a command that asks it.
"""

import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from reconcilers.jail.order import Order

_JOURNAL = "/run/systemd/journal/socket"
_PAUSE_SECONDS = 20.0
"""Between two signs of life where systemd wants none; it takes what was printed to the journal then."""

_NEGOTIATE = b'{"execute":"qmp_capabilities"}\n'
_ASK = b'{"execute":"query-block-exports"}\n'
_ANSWERS = (b'"return"', b'"error"')
_ALIVE = b"WATCHDOG=1"
_GLANCE_SECONDS = 0.2
_LIMITED = b'"limits":[['
"""In a record where there are limits. This runs in a bare interpreter, and to load json is most of what it would do."""


class Asked(Protocol):
    """Where a server gives signs of life. What waits raises EOFError once the server is gone."""

    def answer(self, pause: float, in_vain: Callable[[], None]) -> None:
        """Ask, and wait for the answer, for ever: whoever wants to know whether it comes has a watchdog.

        Args:
            pause: Seconds.
            in_vain: Called every pause that the answer does not come.
        """

    def pass_over(self, pause: float) -> None:
        """Let so many seconds go by, or fewer if the server does something."""


def look_after(server: int, asked: Asked, log: int, order: Order) -> None:
    """Be there as long as the server is, and end as it did. Never returns.

    Args:
        server: Our child.
        asked: Where it gives signs of life.
        log: What it prints, to be read.
        order: What it was started by.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it goes to the server as well, which flushes and ends
    pause = float(os.environ.get("WATCHDOG_USEC", "0")) / 3e6 or _PAUSE_SECONDS
    out = _Out()
    words = _Words(log, order.fields, out)

    def excuse() -> None:
        if (order.held and os.access(order.held, os.F_OK)) or (order.record and _has_limits(order.record)):
            out.notify(_ALIVE)

    told = None
    while True:
        try:
            asked.answer(pause, excuse)
            out.notify(_ALIVE)
            words.tell()
            told = None
            asked.pass_over(pause)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            break
        except OSError as error:
            # Without a descriptor or memory for it (EMFILE, ENFILE, EAGAIN, ENOMEM, ENOBUFS), or a program that asks
            # (ENOENT), it can't be asked. That says nothing of the server, and without a word systemd would kill it.
            out.notify(_ALIVE)
            if error.errno != told:
                words.say(f"it can't be asked whether it hangs ({error.strerror}), and is left alone until it can")
            told = error.errno
            if _ends_within(server, pause):
                break
    _, status = os.waitpid(server, 0)
    words.tell()
    _end_as(os.waitstatus_to_exitcode(status))


def _has_limits(record: str) -> bool:
    """Whether a server has to wait on purpose.

    It does nothing else meanwhile, and a discard counts by its bytes (QEMU's block/throttle.c): one of many gigabytes
    takes minutes under an ordinary limit. A server that hangs is told of all the same, by the agent.
    """
    try:
        with open(record, "rb") as file:  # noqa: PTH123 - pathlib would be loaded for it
            return _LIMITED in file.read()
    except OSError:
        return False


def _ends_within(server: int, seconds: float) -> bool:
    """Whether our child does. It takes no descriptor, as there may be none, and leaves it to be waited for."""
    for _ in range(int(seconds / _GLANCE_SECONDS) + 1):
        if os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        select.select((), (), (), min(seconds, _GLANCE_SECONDS))
    return False


class Monitor:
    """A QMP monitor's other end."""

    def __init__(self, monitor: socket.socket) -> None:
        self._monitor = monitor
        self._question = _NEGOTIATE
        self._rest = b""

    def answer(self, pause: float, in_vain: Callable[[], None]) -> None:
        """See `Asked`."""
        self._monitor.sendall(self._question)
        line = b""
        while not any(mark in line for mark in _ANSWERS):
            line = self._line(pause, in_vain)
        self._question = _ASK

    def pass_over(self, pause: float) -> None:
        """See `Asked`. Ends when the server tells of an event."""
        if _is_readable(self._monitor, pause):
            self._receive()

    def _line(self, pause: float, in_vain: Callable[[], None]) -> bytes:
        while b"\n" not in self._rest:
            while not _is_readable(self._monitor, pause):
                in_vain()
            self._receive()
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _receive(self) -> None:
        part = self._monitor.recv(1 << 16)
        if not part:
            raise EOFError
        self._rest += part


class Command:
    """A program that asks the server, and ends with 0 when it has answered."""

    def __init__(self, words: Sequence[str], server: int) -> None:
        self._words = [*words, str(server)]
        self._server = os.pidfd_open(server)

    def answer(self, pause: float, in_vain: Callable[[], None]) -> None:
        """See `Asked`."""
        while self._ask(pause, in_vain):
            self.pass_over(pause)
            in_vain()

    def pass_over(self, pause: float) -> None:
        """See `Asked`."""
        if _is_readable(self._server, pause):
            raise EOFError

    def _ask(self, pause: float, in_vain: Callable[[], None]) -> int:
        nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
        child = os.posix_spawn(self._words[0], self._words, os.environ, file_actions=nothing)
        try:
            self._wait_for(child, pause, in_vain)
        except (EOFError, OSError):
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            status = os.waitpid(child, 0)[1]
        return os.waitstatus_to_exitcode(status)

    def _wait_for(self, child: int, pause: float, in_vain: Callable[[], None]) -> None:
        pidfd = os.pidfd_open(child)
        try:
            while not _is_readable(pidfd, pause):
                self.pass_over(0)
                in_vain()
        finally:
            os.close(pidfd)


def _is_readable(channel: socket.socket | int, seconds: float) -> bool:
    return bool(select.select([channel], [], [], seconds)[0])


class _Out:
    """Where systemd and the journal are told things. Made once: later there may be no descriptor left for it."""

    def __init__(self) -> None:
        name = os.environ.get("NOTIFY_SOCKET", "")
        self._systemd = f"\0{name[1:]}" if name.startswith("@") else name
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def notify(self, line: bytes) -> None:
        """Tell systemd, if it listens."""
        if self._systemd:
            self.send(self._systemd, line)

    def send(self, address: str, packet: bytes) -> None:
        """Tell whoever is at an address."""
        try:
            self._channel.sendto(packet, socket.MSG_DONTWAIT, address)
        except OSError:  # nobody is there, or too busy; it is only told
            return


class _Words:
    """What a server prints, told to the journal."""

    def __init__(self, log: int, fields: Mapping[str, str], out: _Out) -> None:
        self._log = log
        self._told = os.fstat(log).st_size
        self._fields = {"PRIORITY": "4", "SYSLOG_IDENTIFIER": "tapster-tap", **fields}
        self._out = out

    def tell(self) -> None:
        """Tell what is new, as far as it can be read."""
        try:
            text = os.pread(self._log, 1 << 16, self._told)
        except OSError:
            return
        self._told += len(text)
        for line in text.splitlines():
            self._send(line)

    def say(self, line: str) -> None:
        """Tell something of our own about the server."""
        self._send(line.encode())

    def _send(self, line: bytes) -> None:
        about = b"".join(_field(name, value.encode()) for name, value in self._fields.items())
        self._out.send(_JOURNAL, about + _field("MESSAGE", line))


def _field(name: str, value: bytes) -> bytes:
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)


def _end_as(code: int) -> None:
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)
