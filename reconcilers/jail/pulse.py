"""What looks after a server in its unit: passes its signs of life on to systemd, and its words to the journal.

systemd kills the unit when they stop coming (WatchdogSec= in tapster-tap@.service), whether or not there is an agent.
A sign of life is the answer of the server's main loop, which all requests go through, on a QMP monitor of its own.
"""

import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Mapping

from reconcilers.jail.order import Order

_JOURNAL = "/run/systemd/journal/socket"
_PAUSE_SECONDS = 20.0
"""Between two signs of life where systemd wants none; it takes what was printed to the journal then."""

_NEGOTIATE = b'{"execute":"qmp_capabilities"}\n'
_ASK = b'{"execute":"query-block-exports"}\n'
_ANSWERS = (b'"return"', b'"error"')
_ALIVE = b"WATCHDOG=1"


def look_after(server: int, monitor: socket.socket, log: int, order: Order) -> None:
    """Be there as long as the server is, and end as it did. Never returns.

    Args:
        server: Our child.
        monitor: Its QMP monitor's other end.
        log: What it prints, to be read.
        order: What it was started by.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it goes to the server as well, which flushes and ends
    pause = float(os.environ.get("WATCHDOG_USEC", "0")) / 3e6 or _PAUSE_SECONDS
    words = _Words(log, order.fields)

    def excuse() -> None:
        if order.held and os.access(order.held, os.F_OK):
            _notify(_ALIVE)

    lines = _Lines(monitor, pause, excuse)
    try:
        monitor.sendall(_NEGOTIATE)
        lines.answer()
        while True:
            monitor.sendall(_ASK)
            lines.answer()
            _notify(_ALIVE)
            words.tell()
            lines.pass_over()
    except (EOFError, OSError):
        _, status = os.waitpid(server, 0)
    words.tell()
    _end_as(os.waitstatus_to_exitcode(status))


class _Lines:
    """What comes out of a monitor."""

    def __init__(self, monitor: socket.socket, pause: float, in_vain: Callable[[], None]) -> None:
        """Args: in_vain: Called every `pause` seconds that an answer does not come."""
        self._monitor = monitor
        self._pause = pause
        self._in_vain = in_vain
        self._rest = b""

    def answer(self) -> None:
        """Wait for an answer, for ever: whoever wants to know whether it comes has a watchdog.

        Raises:
            EOFError: The server has closed it.
        """
        while True:
            line = self._line()
            if any(mark in line for mark in _ANSWERS):
                return

    def pass_over(self) -> None:
        """Let the pause go by, which ends when the server tells of an event.

        Raises:
            EOFError: The server has closed it.
        """
        if self._is_readable():
            self._receive()

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            while not self._is_readable():
                self._in_vain()
            self._receive()
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _is_readable(self) -> bool:
        return bool(select.select([self._monitor], [], [], self._pause)[0])

    def _receive(self) -> None:
        part = self._monitor.recv(1 << 16)
        if not part:
            raise EOFError
        self._rest += part


class _Words:
    """What a server prints, told to the journal."""

    def __init__(self, log: int, fields: Mapping[str, str]) -> None:
        self._log = log
        self._told = os.fstat(log).st_size
        self._fields = {"PRIORITY": "4", "SYSLOG_IDENTIFIER": "tapster-tap", **fields}

    def tell(self) -> None:
        """Tell what is new."""
        text = os.pread(self._log, 1 << 16, self._told)
        self._told += len(text)
        about = b"".join(_field(name, value.encode()) for name, value in self._fields.items())
        for line in text.splitlines():
            _send(_JOURNAL, about + _field("MESSAGE", line))


def _field(name: str, value: bytes) -> bytes:
    return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(value)), value)


def _notify(line: bytes) -> None:
    name = os.environ.get("NOTIFY_SOCKET")
    if name:
        _send(f"\0{name[1:]}" if name.startswith("@") else name, line)


def _send(address: str, packet: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.sendto(packet, socket.MSG_DONTWAIT, address)
        except OSError:  # nobody is there, or too busy; it is only told
            return


def _end_as(code: int) -> None:
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)
