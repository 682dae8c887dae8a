"""What the service manager is told: sd_notify(3), a datagram of lines to the socket that systemd names."""

import os
import socket
import time


class Notifier:
    """Tells systemd how the service is doing; says nothing where there is no systemd.

    The socket's name is NOTIFY_SOCKET; `@` stands for the NUL of an abstract one. WATCHDOG_USEC is how often, in
    microseconds, a sign of life is expected.
    """

    def __init__(self) -> None:
        name = os.environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self.watchdog_seconds = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000

    def ready(self) -> None:
        """Every disk has been looked at: what waits for the disks may start."""
        self._send("READY=1")

    def reloading(self) -> None:
        """New settings are coming into force; `ready` says when they are."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The service is ending of its own accord."""
        self._send("STOPPING=1")

    def status(self, sentence: str) -> None:
        """What `systemctl status` shows."""
        self._send(f"STATUS={sentence}")

    def alive(self) -> None:
        """A sign of life."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto("\n".join(lines).encode(), self._address)
        except OSError:  # the manager is restarting, or we have no descriptor left; it asks again by what it expects
            return
