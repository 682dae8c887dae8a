"""What was there already comes again: the agent after a restart, and documents after the broker's."""

import shutil
import signal
import statistics
import subprocess
import sys
import time

from tests.bench import bare_client
from tests.bench.figures import Figure
from tests.bench.steady import SteadyHost
from tests.workbench import domain

CHANGING = (
    *("LOOP_SET_FD", "LOOP_CLR_FD", "LOOP_SET_STATUS", "LOOP_CHANGE_FD", "LOOP_SET_CAPACITY", "LOOP_SET_DIRECT_IO"),
    *("LOOP_SET_BLOCK_SIZE", "LOOP_CONFIGURE", "LOOP_CTL_ADD", "LOOP_CTL_REMOVE", "BLKROSET"),
)
"""Requests to the loop driver (loop.h, fs.h) after which something is not as it was."""

IMPORTS = """
import os
os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
import agent.cli.app
from agent.cli.spared import spared
with spared("rich"):
    import agent.cli.run
"""
"""All that `tapster run` loads before its first line, as it does."""


def restart_figure(steady: SteadyHost, rounds: int) -> Figure:
    """The agent ends and starts again: every status comes anew, and every device is the one it was."""
    host, devices = steady.host, _devices(steady)
    whole, after_start, imports = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        imports.append(1000 * _seconds_of_imports())
        host.stop()
        host.forget()
        began = time.time()
        host.start()
        ended = host.wait_up(steady.count)
        whole.append(1000 * (ended - began))
        after_start.append(1000 * (ended - host.began()))
        if _devices(steady) != devices:
            raise RuntimeError("a restart has changed a device")
    return Figure(
        name=f"restart, {steady.count} disks adopted, statuses current",
        unit="ms",
        values=whole,
        against="python with the agent's imports alone",
        baseline=imports,
        target="≤ 1000 ms",
        note=f"{statistics.median(after_start):.0f} ms of it once it connects; number and diskseq of no device changed",
    )


def ioctl_figure(steady: SteadyHost, skipped: list[str]) -> list[Figure]:
    """The agent starts once more under strace, which counts the requests that would change a device."""
    if shutil.which("strace") is None:
        skipped.append("changing ioctls of a restart: there is no strace; apt-get install strace")
        return []
    host, trace = steady.host, steady.host.folder / "ioctls"
    host.stop()
    host.forget()
    host.under = ["strace", "-D", "-f", "-q", "-e", "trace=ioctl", "-o", str(trace)]  # -D: the process is the agent's
    host.start()
    host.under = []
    host.wait_up(steady.count)
    requests = [line for line in trace.read_text().splitlines() if "ioctl(" in line]
    changing = [line for line in requests if any(name in line for name in CHANGING)]
    host.restart()  # without strace, which would slow down all that is measured after this
    return [
        Figure(
            name=f"restart, {steady.count} disks adopted, ioctls that change a device",
            unit="",
            values=[len(changing)],
            target="0",
            note=f"of {len(requests)} ioctls under strace; the others ask",
        )
    ]


def redelivery_figure(steady: SteadyHost, count: int, rounds: int) -> Figure:
    """So many documents come as they were, and then one that changed tells by its status that they were judged."""
    host, documents = steady.host, steady.documents
    documents |= {f"vm{number:05}": domain(f"vm{number:05}") for number in range(steady.count, count)}
    host.push_all(documents)
    host.wait(lambda: len(host.statuses) >= len(documents), "a status of every guest")
    took, bare = list[float](), list[float]()
    for turn in range(rounds):
        with bare_client.connected(host.broker) as client:
            bare.append(1000 * client.seconds_of_retained(f"{host.topics}/desired/guests/+", len(documents)))
        took.append(_redelivered(steady, turn))
    return Figure(
        name=f"{len(documents)} unchanged documents again",
        unit="ms",
        values=took,
        against="a bare client receives them",
        baseline=bare,
        target="≤ 3 s for 10,000",
        note="the agent stands still while they are sent, so it is receiving, judging and acknowledging that is timed",
    )


def _redelivered(steady: SteadyHost, turn: int) -> float:
    host, guest = steady.host, next(iter(steady.images))
    changed = steady.documents[guest].replace("<devices>", f"<!-- again {turn} --><devices>")
    host.send(signal.SIGSTOP)
    try:
        host.push_all(steady.documents)
        host.push(guest, changed)
        host.forget()
        began = time.time()
    finally:
        host.send(signal.SIGCONT)
    host.wait(lambda: host.heard, "the status of the changed document")
    steady.documents[guest] = changed
    heard = host.heard[0]
    if heard.guest != guest:
        raise RuntimeError(f"the unchanged document of {heard.guest} was answered with a status")
    return 1000 * (heard.at - began)


def _devices(steady: SteadyHost) -> dict[str, tuple[str, int]]:
    disks = {guest: steady.host.statuses[guest]["disks"][0] for guest in steady.images}
    return {guest: (disk["device_path"], disk["diskseq"]) for guest, disk in disks.items()}


def _seconds_of_imports() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - began
