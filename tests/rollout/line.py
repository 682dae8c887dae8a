"""A network between a driver and the broker, which can be cut, and which can hold what a driver sends."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from agent.setting_sections import BrokerSettings
from tests.broker import free_port
from tests.waiting import PATIENCE


class Line:
    """Passes on bytes between a port of its own and the broker.

    Attributes:
        hold_at: Once the driver sends this, it and all after it is held until `release`.
        held: Set once something is held.
    """

    def __init__(self, broker: BrokerSettings) -> None:
        self.hold_at = b""
        self.held = threading.Event()
        self._released = threading.Event()
        self._broker = (broker.host, broker.port)
        self._ends: list[socket.socket] = []
        self.port = free_port()
        self.mend()

    def cut(self) -> None:
        """Close what is open, and let nothing in."""
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)  # wakes who waits at it
        self._door.close()
        while self._ends:
            with suppress(OSError):
                self._ends.pop().shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let in what comes."""
        self._door = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, args=(self._door,), daemon=True).start()

    def release(self) -> None:
        """Pass on what is held."""
        self.hold_at = b""
        self._released.set()

    def end(self) -> None:
        """For good."""
        self.release()
        self.cut()

    def _serve(self, door: socket.socket) -> None:
        with suppress(OSError):
            while True:
                driver, _ = door.accept()
                broker = socket.create_connection(self._broker)
                self._ends += [driver, broker]
                threading.Thread(target=self._out, args=(driver, broker), daemon=True).start()
                threading.Thread(target=self._in, args=(broker, driver), daemon=True).start()

    def _out(self, driver: socket.socket, broker: socket.socket) -> None:
        last = b""
        with suppress(OSError), _both_ending(driver, broker):
            while data := driver.recv(1 << 20):
                last = last[-1000:] + data  # what is looked for may come in two parts
                if self.hold_at and self.hold_at in last:
                    self.held.set()
                    self._released.wait(PATIENCE)
                broker.sendall(data)

    def _in(self, broker: socket.socket, driver: socket.socket) -> None:
        with suppress(OSError), _both_ending(driver, broker):
            while data := broker.recv(1 << 20):
                driver.sendall(data)


@contextmanager
def _both_ending(*ends: socket.socket) -> Iterator[None]:
    """Not closed: where another thread still reads one, the kernel would keep that open, and tell nobody."""
    try:
        yield
    finally:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def line(broker: BrokerSettings) -> Iterator[Line]:
    one = Line(broker)
    try:
        yield one
    finally:
        one.end()
