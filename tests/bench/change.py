"""One thing changes among many guests: how long from the operator's message to the status that answers it."""

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any

from tests.bench import bare_client, by_hand
from tests.bench.figures import Figure, percentile
from tests.bench.steady import SteadyHost
from tests.workbench import domain, loop_disk

WORD = "<description>a word that concerns no disk</description>"


def disk_figures(steady: SteadyHost, changes: int) -> list[Figure]:
    """A second disk comes to a guest and leaves it again, one guest after another."""
    took, by_losetup = list[float](), list[float]()
    with by_hand.workplace() as aside:
        [image] = by_hand.raw_images(aside, 1)
        for guest in _some(steady, changes):
            by_losetup.append(1000 * by_hand.seconds_of_shell_loop([image]))
            by_hand.take_down(aside)
            one = loop_disk("vda", steady.images[guest])
            both = domain(guest, one, loop_disk("vdb", steady.spare))
            took.append(steady.answer(guest, both, _second_disk_up))
            steady.answer(guest, domain(guest, one), lambda status: len(status["disks"]) == 1)
    name = f"one disk added among {steady.count} guests, to its status"
    return _latencies(name, took, "one losetup -f --show", by_losetup)


def document_figures(steady: SteadyHost, changes: int) -> list[Figure]:
    """A document changes in a word that concerns no disk."""
    took, echoes = list[float](), list[float]()
    with bare_client.connected(steady.host.broker) as client:
        for turn, guest in enumerate(_some(steady, changes)):
            echoes.append(1000 * client.seconds_of_echo())
            document = steady.documents[guest].replace("<devices>", f"{WORD}<!-- {turn} --><devices>")
            took.append(steady.answer(guest, document, _other_than(steady.host.statuses[guest]["sha256"])))
    name = f"one word changed among {steady.count} guests, to its status"
    return _latencies(name, took, "the broker's echo to a bare client", echoes)


def _some(steady: SteadyHost, changes: int) -> list[str]:
    return list(islice(cycle(steady.images), changes))


def _second_disk_up(status: dict[str, Any]) -> bool:
    return any(disk["target"] == "vdb" and disk["phase"] == "Up" for disk in status["disks"])


def _other_than(sha256: str) -> Callable[[dict[str, Any]], bool]:
    return lambda status: status["sha256"] != sha256


def _latencies(name: str, took: Sequence[float], against: str, baseline: Sequence[float]) -> list[Figure]:
    return [
        Figure(
            name=f"{name}, p{share * 100:.0f}",
            unit="ms",
            values=[percentile(took, share)],
            against=against,
            baseline=[percentile(baseline, share)],
            target=target,
            note=f"of {len(took)} changes, one at a time" if note else "",
        )
        for share, target, note in ((0.5, "≤ 5 ms", True), (0.99, "≤ 20 ms", False))
    ]
