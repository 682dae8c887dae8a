"""Bring-up: documents retained on the broker, an agent that comes to them, and every status Up."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import by_hand, udisks
from tests.bench.figures import Figure
from tests.bench.host import measured_host
from tests.bench.process import cpu_seconds
from tests.workbench import domain, loop_disk, tap_disk

UDISKS_MAX = 50
"""Of so many it is told what one takes; a thousand would take most of the benchmark's time."""

PATH_OF_A_DISK = "document to durable store to device to stable path to status to broker"


@dataclass(frozen=True, slots=True)
class BringUp:
    """One round of the agent's. Times are seconds.

    Attributes:
        work: From the moment it was ready to connect until the last status was heard.
        cold: The same from the start of its process.
        agent_cpu: What it used of a core for the work.
        broker_cpu: What the broker did.
        listener_cpu: What hearing the statuses cost in this process.
    """

    work: float
    cold: float
    agent_cpu: float
    broker_cpu: float
    listener_cpu: float


def bring_up(disks: Sequence[str]) -> BringUp:
    """Bring up one guest for each disk on a host of its own, its store empty at first, and take everything down."""
    documents = {f"vm{number:05}": domain(f"vm{number:05}", disk) for number, disk in enumerate(disks)}
    with measured_host() as host:
        host.push_all(documents)
        broker_before, began = host.broker_cpu(), time.time()
        host.start()
        starting = host.wait_began()
        listener_before = time.process_time()
        ended = host.wait_up(len(disks))
        return BringUp(
            work=ended - host.began(),
            cold=ended - began,
            agent_cpu=cpu_seconds(host.pid) - starting,
            broker_cpu=host.broker_cpu() - broker_before,
            listener_cpu=time.process_time() - listener_before,
        )


def loop_figures(count: int, rounds: int, skipped: list[str]) -> list[Figure]:
    """`count` guests with a loop disk each, against losetup in a shell loop and bare ioctls."""
    with by_hand.workplace() as folder, by_hand.loop_nodes(count + 16):
        images = by_hand.raw_images(folder, count)
        program = by_hand.compile_bare_loop(folder)
        if isinstance(program, str):
            skipped.append(program)
        if without_udisks := udisks.lacking():
            skipped.append(without_udisks)
        few = images[:UDISKS_MAX]
        disks = [loop_disk("vda", image) for image in images]
        shell, bare, desktop, ours = list[float](), list[float](), list[float](), list[BringUp]()
        for _ in range(rounds):
            shell.append(by_hand.seconds_of_shell_loop(images))
            by_hand.take_down(folder)
            if isinstance(program, Path):
                bare.append(by_hand.seconds_of_bare_loop(program, images))
                by_hand.take_down(folder)
            if not without_udisks:
                desktop.append(udisks.seconds_of_loop_setup(few))
                by_hand.take_down(folder)
            ours.append(bring_up(disks))
    return _loop_rows(count, ours, _each(shell, count), _each(bare, count), _each(desktop, len(few)))


def _loop_rows(
    count: int, ours: Sequence[BringUp], shell: Sequence[float], bare: Sequence[float], desktop: Sequence[float]
) -> list[Figure]:
    name, work = f"loop disk up, of {count}", _each([one.work for one in ours], count)
    figures = [
        Figure(
            name=name,
            unit="ms",
            values=work,
            against="losetup -f --show, shell loop",
            baseline=shell,
            target="≤ 1",
            note=f"{PATH_OF_A_DISK}; {_cpu(ours, count)}",
        )
    ]
    if bare:
        against = "LOOP_CONFIGURE in C"
        figures.append(Figure(name=name, unit="ms", values=work, against=against, baseline=bare, target="≤ 3"))
    if desktop:
        against, note = "udisksctl loop-setup, shell loop", f"udisks made {min(count, UDISKS_MAX)} a round"
        figures.append(Figure(name=name, unit="ms", values=work, against=against, baseline=desktop, note=note))
    cold = _each([one.cold for one in ours], count)
    return [*figures, _cold(f"{name}, cold", cold, "losetup -f --show, shell loop", shell)]


def qcow2_figures(count: int, rounds: int) -> list[Figure]:
    """`count` guests with a qcow2 disk each, against storage daemons and losetup by hand, two at a time."""
    with by_hand.workplace() as folder, by_hand.loop_nodes(count + 16):
        images = by_hand.qcow2_images(folder, count)
        disks = [tap_disk("vda", image, "qcow2") for image in images]
        shell, ours = list[float](), list[BringUp]()
        for _ in range(rounds):
            shell.append(by_hand.seconds_of_qcow2_loops(images))
            by_hand.take_down(folder)
            ours.append(bring_up(disks))
    name, against, bare = f"qcow2 disk up, of {count}", "storage daemon + losetup, 2 at a time", _each(shell, count)
    note = f"{PATH_OF_A_DISK}, with a process in between; {_cpu(ours, count)}"
    work, cold = _each([one.work for one in ours], count), _each([one.cold for one in ours], count)
    return [
        Figure(name=name, unit="ms", values=work, against=against, baseline=bare, target="≤ 1.3", note=note),
        _cold(f"{name}, cold", cold, against, bare),
    ]


def growth_figures(small: int, large: int) -> list[Figure]:
    """What a loop disk costs on a host with many, against one with few."""
    with by_hand.workplace() as folder, by_hand.loop_nodes(large + 16):
        disks = [loop_disk("vda", image) for image in by_hand.raw_images(folder, large)]
        few, many = bring_up(disks[:small]), bring_up(disks)
    return [
        Figure(
            name=f"loop disk up, of {large}",
            unit="ms",
            values=_each([many.work], large),
            against=f"tapster, of {small}",
            baseline=_each([few.work], small),
            target="≤ 1.3",
            note="one round",
        )
    ]


def _cold(name: str, values: Sequence[float], against: str, baseline: Sequence[float]) -> Figure:
    note = "with the start of the process: interpreter, imports, and what the host can do"
    return Figure(name=name, unit="ms", values=values, against=against, baseline=baseline, note=note)


def _each(seconds: Sequence[float], count: int) -> list[float]:
    return [1000 * one / count for one in seconds]


def _cpu(ours: Sequence[BringUp], count: int) -> str:
    parts = {
        "agent": [one.agent_cpu for one in ours],
        "broker": [one.broker_cpu for one in ours],
        "hearing it here": [one.listener_cpu for one in ours],
    }
    words = [f"{name} {1000 * statistics.median(values) / count:.2f}" for name, values in parts.items()]
    return f"CPU ms a disk: {', '.join(words)}"
