"""Somebody takes a disk's device away: how long until the agent says that it is up again, on a device that is bound."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

from reconcilers.loop import control
from tests.bench import by_hand
from tests.bench.figures import Figure, percentile
from tests.bench.host import MeasuredHost, measured_host
from tests.workbench import domain, loop_disk, tap_disk


def drift_figures(disks: int, taps: int, repairs: int) -> list[Figure]:
    """Loop devices of loop disks and of taps are detached, one at a time, from a host with so many of each."""
    with ExitStack() as stack:
        folder, aside = stack.enter_context(by_hand.workplace()), stack.enter_context(by_hand.workplace())
        stack.enter_context(by_hand.loop_nodes(disks + taps + 16))
        host = stack.enter_context(measured_host())
        loops = {f"loop{number}": image for number, image in enumerate(by_hand.raw_images(folder, disks))}
        served = {f"tap{number}": image for number, image in enumerate(by_hand.qcow2_images(folder, taps))}
        host.start()
        host.wait_synced()
        host.push_all({guest: domain(guest, loop_disk("vda", image)) for guest, image in loops.items()})
        host.push_all({guest: domain(guest, tap_disk("vda", image, "qcow2")) for guest, image in served.items()})
        host.wait_up(disks + taps)
        time.sleep(1)  # the host's own status follows the last disk's
        return [
            *_figures("loop disk", _repairs(host, loops, repairs), _by_losetup(aside, repairs)),
            *_figures("device of a qcow2 disk", _repairs(host, served, repairs), ()),
        ]


def _repairs(host: MeasuredHost, guests: Mapping[str, Path], count: int) -> list[float]:
    return [_repair(host, guest) for guest in islice(cycle(guests), count)]


def _repair(host: MeasuredHost, guest: str) -> float:
    """Milliseconds from the end of the ioctl to the status that says so."""
    device = control.describe(int(str(host.stable(guest, "vda").readlink()).removeprefix("/dev/loop")))
    if device is None:
        raise RuntimeError(f"the device of {guest} is not there")
    host.forget()
    if not control.try_detach(device):
        raise RuntimeError(f"the device of {guest} is in use")
    began = time.time()

    def repaired() -> bool:
        [disk] = host.statuses[guest]["disks"]
        return bool(disk["phase"] == "Up" and disk["diskseq"] != device.diskseq)

    host.wait(repaired, f"{guest} up again")
    return 1000 * (host.up[guest] - began)


def _by_losetup(folder: Path, count: int) -> list[float]:
    [image], took = by_hand.raw_images(folder, 1), []
    for _ in range(count):
        took.append(1000 * by_hand.seconds_of_shell_loop([image]))
        by_hand.take_down(folder)
    return took


def _figures(what: str, took: Sequence[float], by_losetup: Sequence[float]) -> list[Figure]:
    return [
        Figure(
            name=f"{what} detached by others, to Up again, p{share * 100:.0f}",
            unit="ms",
            values=[percentile(took, share)],
            against="one losetup -f --show" if by_losetup else "",
            baseline=[percentile(by_losetup, share)] if by_losetup else (),
            target="≤ 50 ms" if share > 0.5 else "",
            note=f"of {len(took)}, one at a time; the slowest took {max(took):.1f} ms" if share > 0.5 else "",
        )
        for share in (0.5, 0.99)
    ]
