"""One tap: from spawn to device, its memory and its I/O, beside the same chain made by hand with the same flags.

What it is measured on is the reconciler, without agent and bus. tapdisk is not among the servers: what tests have of it
is a double, and how fast that is tells nobody anything.
"""

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reconcilers.blktap import storage_daemon
from reconcilers.blktap.abilities import TapAbilities, why_no_device
from reconcilers.blktap.fuse_loop import FuseLoop
from reconcilers.blktap.grant import has_io_uring
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.blktap.nbd.devices import NbdDevices
from reconcilers.blktap.nbd_socket.devices import NbdSockets
from reconcilers.blktap.reconciler import BlktapReconciler
from reconcilers.blktap.storage_daemon import StorageDaemon
from reconcilers.blktap.tap import TAPS, TapFolder
from reconcilers.holds import HoldRequests
from reconcilers.jail.launcher import Launcher, Starter
from reconcilers.jail.profile import Jail
from reconcilers.jail.units import UnitStarter
from reconcilers.loop.devices import LoopDevices
from reconcilers.pools import Pools
from reconcilers.source import pinned
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format
from reconcilers.stable_path import StablePaths
from reconcilers.tag import instance_id
from reconcilers.tuning import Aio, Tuning
from tests.bench import by_hand
from tests.bench.figures import Figure
from tests.bench.input_output import Comparison, Turns, full_image, io_figures
from tests.bench.process import memory
from tests.jail.systemds_place import SystemdsPlace
from tests.on_host import FOLDER_PREFIX

PATIENCE = 60.0

BY_HAND = {
    DeviceKind.FUSE_LOOP: ("storage daemon + losetup, same flags", by_hand.FUSE_LOOP),
    DeviceKind.NBD: ("storage daemon + nbd-client, same flags", by_hand.NBD),
}


@dataclass(frozen=True, slots=True)
class Taps:
    """A reconciler of taps over one kind of device, and the loop that it runs in."""

    folder: Path
    reconciler: BlktapReconciler
    runner: asyncio.Runner

    def up(self, image: Path, aio: Aio | None = None) -> Path:
        """Bring up a tap over a raw image; its device."""
        key, tuning = DiskKey(image.stem, "vda"), Tuning(io=aio)
        spec = DiskSpec(key=key, source=str(image), backend=Backend.BLKTAP, format=Format.AIO, tuning=tuning)
        with pinned(str(image), Pools(folders=(image.parent,))) as pin:
            self.runner.run(self.reconciler.attach(spec, pin))
        return Path(os.readlink(self.folder / "disks" / key.guest / key.target))  # noqa: PTH115

    def down(self, image: Path) -> None:
        """Take it down."""
        self.runner.run(self.reconciler.detach(DiskKey(image.stem, "vda")))

    def servers(self) -> list[int]:
        """Their process ids."""
        return [TapFolder(tap).process_id() for tap in (self.folder / "taps").iterdir()]


def tap_figures(count: int, rounds: int, turns: Turns, skipped: list[str]) -> list[Figure]:
    """Every figure of every path to a device that this host has.

    Args:
        count: So many taps at once share memory, and are brought up one after the other.
        rounds: How often the latter.
        turns: Of each I/O job.
        skipped: Gets what can't be measured here.
    """
    figures = list[Figure]()
    for kind, (against, script) in BY_HAND.items():
        if why := why_no_device(kind):
            skipped.append(f"taps over {kind}: {why}")
            continue
        if kind is DeviceKind.NBD and not shutil.which("nbd-client"):
            skipped.append(f"taps over {kind}: there is no nbd-client to compare with; apt-get install nbd-client")
            continue
        with by_hand.workplace() as folder, by_hand.loop_nodes(count + 8):
            images = by_hand.raw_images(folder, count)
            figures.append(_spawn_figure(kind, images, rounds, against, script))
            figures += _memory_figures(kind, images, against, script)
            image = full_image(folder)
            for comparison in _io_comparisons(kind, image, against, script):
                figures += io_figures(comparison, turns, skipped)
    return figures


def _spawn_figure(kind: DeviceKind, images: Sequence[Path], rounds: int, against: str, script: str) -> Figure:
    ours, theirs = list[float](), list[float]()
    with _taps(kind, Launcher()) as taps:
        for _ in range(rounds):
            theirs.append(1000 * by_hand.seconds_of_each(script, images) / len(images))
            by_hand.take_down(images[0].parent)
            began = time.perf_counter()
            for image in images:
                taps.up(image)
            ours.append(1000 * (time.perf_counter() - began) / len(images))
            for image in images:
                taps.down(image)
    return Figure(
        name=f"aio tap over {kind}, spawn to device",
        unit="ms",
        values=ours,
        against=against,
        baseline=theirs,
        note=f"{len(images)}, one after the other; image checked and locked, server in its jail, device, stable path",
    )


def _memory_figures(kind: DeviceKind, images: Sequence[Path], against: str, script: str) -> Iterator[Figure]:
    by_hand.seconds_of_each(script, images)
    theirs = [memory(pid)[1] for pid in by_hand.daemons(images[0].parent)]
    by_hand.take_down(images[0].parent)
    with tempfile.TemporaryDirectory() as folder:
        # As in units, where each server has a process that looks after it.
        systemd = SystemdsPlace(Path(folder) / "orders")
        with _taps(kind, UnitStarter(Path(folder), systemd)) as taps:
            for image in images:
                taps.up(image)
            servers = [memory(pid)[1] for pid in taps.servers()]
            companions = [memory(process.pid)[1] for process in systemd.processes]
            for image in images:
                taps.down(image)
            for process in systemd.processes:
                taps.runner.run(process.wait())
    yield Figure(
        name=f"aio tap over {kind}, PSS of its server",
        unit="MB",
        values=[statistics.mean(servers)],
        against=against,
        baseline=[statistics.mean(theirs)],
        note=f"the mean of {len(images)}, right after they came up",
    )
    yield Figure(
        name=f"aio tap over {kind}, PSS of what looks after it",
        unit="MB",
        values=[statistics.mean(companions)],
        note="in its unit; without systemd one launcher process does for all taps",
    )


def _io_comparisons(kind: DeviceKind, image: Path, against: str, script: str) -> Iterator[Comparison]:
    """With threads, the default, and with io_uring, which reads faster and writes slower."""
    yield Comparison(f"aio tap over {kind}", _device(kind, image), against, [by_hand.by_shell(script, image)])
    if has_io_uring():
        ours, theirs = _device(kind, image, Aio.IO_URING), by_hand.by_shell(script, image, Aio.IO_URING)
        yield Comparison(f"{kind}, io='io_uring'", ours, f"{against}, io_uring", [theirs])


def _device(kind: DeviceKind, image: Path, aio: Aio | None = None) -> by_hand.Device:
    @contextmanager
    def device() -> Iterator[Path]:
        with _taps(kind, Launcher()) as taps:
            yield taps.up(image, aio)
            taps.down(image)

    return device


@contextmanager
def _taps(kind: DeviceKind, starter: Starter) -> Iterator[Taps]:
    """What is up at the end of the block was measured in vain: it is killed."""
    runtime = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}bench-", dir="/run"))
    with asyncio.Runner() as runner:
        daemon = StorageDaemon(runner.run(storage_daemon.version()) or "", starter, Jail.REQUIRE)
        abilities = TapAbilities(
            {ServerKind.STORAGE_DAEMON: daemon}, (kind,), daemon.formats, None, starter, Jail.REQUIRE
        )
        instance = instance_id("bench", "bench", str(runtime))
        reconciler = BlktapReconciler(
            runtime,
            abilities,
            fuse_loop=FuseLoop(LoopDevices(instance, runtime)),
            nbd=NbdDevices(instance, grace=60),
            sockets=NbdSockets(runtime / TAPS, None),
            paths=StablePaths(runtime / "disks"),
            requests=HoldRequests(runtime),
            patience=PATIENCE,
            on_server_change=lambda _: None,
        )
        try:
            yield Taps(runtime, reconciler, runner)
        finally:
            for record in reconciler.records():
                runner.run(reconciler.detach(record.key))
            runner.run(reconciler.close())
            starter.close()
            shutil.rmtree(runtime)
