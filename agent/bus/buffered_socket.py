"""A socket that talks to the kernel in large pieces, for a library that reads single bytes and sends single packets.

paho asks the kernel three times for each packet it reads and once for each that it sends. With hundreds of messages in
flight that is most of what the bus costs, so what has arrived is taken at once, and what is sent in one turn of the
event loop goes out together.
"""

import socket
import ssl
from contextlib import suppress
from typing import Any

PIECE = 1 << 16
"""Bytes asked for at once; more than a socket of Linux mostly has."""

HELD_MAX = 1 << 20
"""Bytes that may wait to be sent. Beyond it the library has to wait, as it would for a full socket."""

_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class BufferedSocket:
    """Takes the place of a connected, non-blocking socket. What is sent goes out with `flush`, and at the end."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self._arrived = b""
        self._taken = 0
        self._held = bytearray()

    def recv(self, size: int) -> bytes:
        """Up to so many bytes; none at the end of the connection. Raises as the socket does where there are none."""
        if self._taken == len(self._arrived):
            self._arrived, self._taken = self._inner.recv(PIECE), 0
        piece = self._arrived[self._taken : self._taken + size]
        self._taken += len(piece)
        return piece

    def pending(self) -> int:
        """Bytes that were taken from the kernel and not asked for yet: it does not tell of them again."""
        unread = len(self._arrived) - self._taken
        return unread + (self._inner.pending() if isinstance(self._inner, ssl.SSLSocket) else 0)

    def send(self, data: bytes | bytearray) -> int:
        """Take `data` over."""
        if len(self._held) >= HELD_MAX:
            self.flush()
            if len(self._held) >= HELD_MAX:
                raise BlockingIOError
        self._held += data
        return len(data)

    @property
    def holds(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._held)

    def flush(self) -> None:
        """Send what the kernel takes now. What a broken connection does not take is lost, and reading tells of that."""
        try:
            while self._held:
                del self._held[: self._inner.send(self._held)]
        except _NOT_NOW:
            return
        except OSError:
            self._held.clear()

    def close(self) -> None:
        """Send what can be sent, and close."""
        with suppress(ValueError):  # closed before
            self.flush()
        self._inner.close()

    def __getattr__(self, name: str) -> Any:
        """All else is the socket's own."""
        return getattr(self._inner, name)
