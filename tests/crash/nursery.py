"""Agents that start at once: forked from a process that has imported everything already.

An agent is a process like any other, with nothing in common with those before it; only the time for imports is saved,
which would be most of a crash test's.
"""

import json
import os
import select
import signal
import subprocess
import sys
import weakref
from pathlib import Path

_ROOT = Path(__file__).parents[2]


class Agent:
    """A forked agent, with the methods of `subprocess.Popen` that a bench needs. It waits for `go`."""

    def __init__(self, pid: int, gate: int) -> None:
        self.pid = pid
        self._gate = gate
        self._pidfd = os.pidfd_open(pid)
        # There is one for each crash, and select(2), which paho uses in the same process, knows 1024 descriptors.
        weakref.finalize(self, os.close, self._pidfd)

    def go(self) -> None:
        """Let it begin."""
        os.write(self._gate, b"!")
        os.close(self._gate)

    def poll(self) -> int | None:
        """0 if it has ended; by what is not known, as it is not our child."""
        return 0 if select.select([self._pidfd], [], [], 0)[0] else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended."""
        if not select.select([self._pidfd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("agent", timeout or 0)
        return 0

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is there."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that agents are forked from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def agent(self, config: Path, log: Path, *, lines: Path | None = None) -> Agent:
        """A new agent; it notes the lines of code that it went through in the file `lines` when it ends."""
        assert self._process.stdin
        assert self._process.stdout
        fifo = config.with_name("gate")
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo)
        order = [str(config), str(log), str(fifo), str(lines) if lines else None]
        self._process.stdin.write(f"{json.dumps(order)}\n".encode())
        self._process.stdin.flush()
        gate = os.open(fifo, os.O_WRONLY | os.O_CLOEXEC)
        return Agent(int(self._process.stdout.readline()), gate)

    def close(self) -> None:
        """No more agents; those that are there go on."""
        self._process.communicate(timeout=60)


def _serve() -> None:
    import agent.daemon  # noqa: F401, PLC0415 - for its children
    from agent.cli.app import main  # noqa: PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # they are reaped by the kernel
    for order in sys.stdin:
        if pid := os.fork():
            sys.stdout.write(f"{pid}\n")
            sys.stdout.flush()
            continue
        _become_agent(*json.loads(order))
        main()


def _become_agent(config: str, log: str, gate: str, lines: str | None) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for fd, target, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
        opened = os.open(target, flags, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    os.dup2(1, 2)
    with open(gate, "rb") as held:  # noqa: PTH123
        held.read()
    sys.argv = ["tapster", "run", "--config", config]
    if lines:
        from tests.crash.sites import note_lines  # noqa: PLC0415

        note_lines(Path(lines))


if __name__ == "__main__":
    _serve()
