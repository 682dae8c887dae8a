"""Programs in jails, for tests."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reconcilers.jail import enter, warden
from reconcilers.jail.launcher import Launcher
from reconcilers.jail.order import Order
from reconcilers.jail.profile import order

SECONDS = 60


@dataclass(frozen=True, slots=True)
class Cell:
    """A process in a jail."""

    pid: int
    log: Path

    def status(self, name: str) -> str:
        """A line of /proc/<pid>/status."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(f"{name}:"))

    def shares(self, namespace: str) -> bool:
        """Whether it is in our namespace of that kind."""
        return Path(f"/proc/{self.pid}/ns/{namespace}").readlink() == Path(f"/proc/self/ns/{namespace}").readlink()

    def printed(self) -> str:
        """What it printed, once it has ended."""
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(self.pid)
            ended, _, _ = select.select([pidfd], [], [], SECONDS)
            os.close(pidfd)
            assert ended, "it does not end"
        return self.log.read_text()


@contextmanager
def jailed(wanted: Order, descriptors: Sequence[int] = ()) -> Iterator[Cell]:
    """A program started by the launcher process, as servers are; it has ended after the block."""
    launcher = Launcher()
    with tempfile.NamedTemporaryFile() as log:
        try:
            launched = asyncio.run(launcher.launch("cell", wanted, log.fileno(), descriptors))
            with _ending(launched.pid):
                yield Cell(launched.pid, Path(log.name))
        finally:
            launcher.close()


@contextmanager
def jailed_without(piece: str, wanted: Order) -> Iterator[Cell]:
    """The same but for one piece of the jail, which is left out."""
    report, its_end = os.pipe()
    with tempfile.NamedTemporaryFile() as log:
        pid = os.fork()
        if pid == 0:
            pieces = [(name, take) for name, take in enter.PIECES if name != piece]
            wanted.strict = False  # seccomp can't be had without no_new_privs
            warden.become(wanted.encode(), [its_end, log.fileno()], lambda _: pieces)
        os.close(its_end)
        with os.fdopen(report) as lines:
            said = lines.read()
        assert said.startswith(f"pid {pid}\n")
        assert "failed" not in said
        try:
            with _ending(pid):
                yield Cell(pid, Path(log.name))
        finally:
            os.waitpid(pid, 0)


@contextmanager
def _ending(pid: int) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def sleeper(change: Callable[[Order], None] = lambda _: None, *, mounts: bool = True) -> Order:
    """A program that does nothing for a while."""
    wanted = order(["sleep", "600"], mount_point=Path("/run/x/export") if mounts else None)
    change(wanted)
    return wanted


def script(path: Path, *words: str, mounts: bool = True) -> Order:
    """A Python program that imports ctypes, json and socket, with a bare interpreter."""
    library = Path(sysconfig.get_path("stdlib")).resolve()
    command = [str(Path(sys.executable).resolve()), "-I", "-S", "-c", path.read_text(), *words]
    wanted = order(command, mount_point=Path("/tmp/x") if mounts else None)
    extension = next(library.glob("lib-dynload/_ctypes.*"))
    wanted.files = sorted({*wanted.files, *libraries_of(str(extension)), str(library)})
    return wanted


def libraries_of(program: str) -> list[str]:
    """What it is linked with."""
    answer = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return [word for word in answer.split() if word.startswith("/")]
