"""A host at work: what its agent takes when nothing happens."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import by_hand
from tests.bench.figures import Figure
from tests.bench.host import MeasuredHost, measured_host
from tests.bench.process import cpu_seconds, memory
from tests.workbench import domain, loop_disk


@dataclass(frozen=True, slots=True)
class SteadyHost:
    """A host whose disks are up, one a guest.

    Attributes:
        host: It.
        images: Of the guests, by name.
        documents: What was pushed last for each guest; replace an entry when you push another.
        spare: An image that nobody has.
        empty_memory: RSS and PSS of the agent before there was a disk, in MB.
    """

    host: MeasuredHost
    images: dict[str, Path]
    documents: dict[str, str]
    spare: Path
    empty_memory: tuple[float, float]

    @property
    def count(self) -> int:
        """How many disks there are."""
        return len(self.images)

    def answer(self, guest: str, document: str, answered: Callable[[dict[str, Any]], bool]) -> float:
        """Push a document; returns the milliseconds until a status came that is the answer."""
        self.host.forget()
        began = time.time()
        self.host.push(guest, document)
        self.host.wait(lambda: any(answered(one.status) for one in self.host.heard), f"the answer for {guest}")
        self.documents[guest] = document
        return 1000 * (next(one.at for one in self.host.heard if answered(one.status)) - began)


@contextmanager
def steady_host(count: int) -> Iterator[SteadyHost]:
    """A host with so many loop disks up."""
    with by_hand.workplace() as folder, by_hand.loop_nodes(count + 16), measured_host() as host:
        *files, spare = by_hand.raw_images(folder, count + 1)
        images = {f"vm{number:05}": image for number, image in enumerate(files)}
        documents = {guest: domain(guest, loop_disk("vda", image)) for guest, image in images.items()}
        host.start()
        host.wait_synced()
        empty = memory(host.pid)
        host.push_all(documents)
        host.wait_up(count)
        yield SteadyHost(host, images, documents, spare, empty)


def memory_figures(steady: SteadyHost) -> list[Figure]:
    """What the agent has in memory, tap servers apart."""
    full, empty, count = memory(steady.host.pid), steady.empty_memory, steady.count
    note = f"{1024 * (full[0] - empty[0]) / count:.1f} KB a disk; the rest is Python and the libraries"
    return [
        _memory(f"RSS of the agent, {count} disks", full[0], empty[0], target="≤ 80 MB", note=note),
        _memory(f"PSS of the agent, {count} disks", full[1], empty[1]),
    ]


def idle_figure(steady: SteadyHost, seconds: float) -> Figure:
    """CPU time while nothing happens."""
    time.sleep(1)  # the host's own status follows the last disk's
    before, began = cpu_seconds(steady.host.pid), time.perf_counter()
    time.sleep(seconds)
    share = (cpu_seconds(steady.host.pid) - before) / (time.perf_counter() - began)
    note = f"over {seconds:g} s; a slow resync may or may not have fallen into it"
    name = f"CPU when idle, {steady.count} disks"
    return Figure(name=name, unit="% of a core", values=[100 * share], target="≤ 0.2 %", note=note)


def _memory(name: str, full: float, empty: float, *, target: str = "", note: str = "") -> Figure:
    against, baseline = "the same agent without a disk", [empty]
    return Figure(name=name, unit="MB", values=[full], against=against, baseline=baseline, target=target, note=note)
