"""A private mosquitto for a test, with the configuration of `tapster broker --dev`."""

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM, SIGUSR1, Signals

from agent.cli.broker import ADDRESS, configuration, mosquitto

PATIENCE = 60.0
"""Seconds after which we give it up. A bound, not a measure: a machine's disk may stand still for a while."""


class Broker:
    """A mosquitto process on a port of its own, which keeps port and folder through restarts."""

    def __init__(self, folder: Path, extra: str = "") -> None:
        self.folder = folder
        self.host = ADDRESS
        self.port = free_port()
        self._file = folder / "mosquitto.conf"
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        program = mosquitto()
        assert program is not None, "the tests need mosquitto: apt-get install mosquitto"
        self._file.write_text(self.configuration())
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([program, "-c", str(self._file)], stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        for port in self.ports:
            while not self._takes_connections(port):
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, "mosquitto does not listen"
                time.sleep(0.01)

    @property
    def ports(self) -> list[int]:
        """All that it listens on."""
        return [self.port]

    def _takes_connections(self, port: int) -> bool:
        with suppress(OSError), socket.create_connection((self.host, port), timeout=1):
            return True
        return False

    def configuration(self) -> str:
        """Its mosquitto.conf."""
        return configuration(self.port, self.folder) + self._extra

    def save(self) -> None:
        """Have it write what it holds to disk, and wait for that."""
        before = self._saved()
        self.signal(SIGUSR1)
        deadline = time.monotonic() + PATIENCE
        while self._saved() == before:
            assert time.monotonic() < deadline, "mosquitto does not save"
            time.sleep(0.01)

    def _saved(self) -> int:
        file = self.folder / "mosquitto.db"
        return file.stat().st_mtime_ns if file.exists() else 0

    def signal(self, number: Signals) -> None:
        """Send it a signal, SIGSTOP and SIGCONT for example."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: Signals = SIGTERM) -> None:
        """End it, with SIGKILL if so wished, and wait for its end."""
        if self._process is not None:
            self._process.send_signal(SIGCONT)
            self._process.send_signal(number)
            self._process.wait(PATIENCE)
            self._process = None

    def restart(self, number: Signals = SIGTERM) -> None:
        """End it and start it again."""
        self.stop(number)
        self.start()


@contextmanager
def running_broker(extra: str = "") -> Iterator[Broker]:
    """A broker that runs inside the `with` block; `extra` lines are added to its configuration."""
    with tempfile.TemporaryDirectory(prefix="tapster-broker-") as folder:
        broker = Broker(Path(folder), extra)
        broker.start()
        try:
            yield broker
        finally:
            broker.stop(SIGKILL)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])
