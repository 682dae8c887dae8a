"""Measure tapster beside what one would use instead, and print one table of ratios.

    python -m tests.bench                   two minutes, small sizes; ten at most
    python -m tests.bench --full            half an hour: the sizes that the targets are about; an hour at most
    python -m tests.bench --only loop,help  some families of figures
    python -m tests.bench --json FILE       everything that was measured, for programs
    python -m tests.bench --within SECONDS  another limit; what was measured by then is printed

Run it as root in the checkout, on a host with /dev/loop-control, /dev/fuse, mosquitto, qemu-storage-daemon and
losetup; gcc and udisks are used if they are there. Real agents, brokers, kernels and servers in folders of their own:
nothing of yours is touched, and everything is taken down again, also after Ctrl-C.

What is compared is measured in turns within one run, round by round, so compare ratios and not milliseconds: those
are of this machine at this moment. Nothing is left out on tapster's side: the durable store is on, with its syncs.
"""

import argparse
import compileall
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rich.console import Console

import agent
import reconcilers
from tests.bench import again, bring_up, change, command, drift, input_output, steady, taps
from tests.bench.figures import Figure, show, write
from tests.bench.input_output import Turns

FAMILIES = ("help", "loop", "qcow2", "steady", "drift", "growth", "io", "taps")
PROGRAMS = ("mosquitto", "qemu-storage-daemon", "qemu-img", "losetup")
_ENDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "interrupted",
    signal.SIGALRM: "the time was up; give it more with --within",
}
"""What ends a run early, in the words of the table."""

NODES = ("/dev/loop-control", "/dev/fuse")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    disks: int
    taps: int
    adopted: int
    changes: int
    repairs: int
    redelivered: int
    idle: float
    growth: tuple[int, int]
    rounds: int
    io: Turns
    within: int


SMALL = Sizes(
    disks=200,
    taps=24,
    adopted=200,
    changes=100,
    repairs=200,
    redelivered=1000,
    idle=5,
    growth=(50, 400),
    rounds=3,
    io=Turns(3, seconds=1),
    within=600,
)
FULL = Sizes(
    disks=1000,
    taps=200,
    adopted=1000,
    changes=1000,
    repairs=1000,
    redelivered=10_000,
    idle=60,
    growth=(250, 4000),
    rounds=5,
    io=Turns(9, seconds=2),
    within=3600,
)


def main() -> int:
    """Run, print, write."""
    options = _options()
    sizes = _sizes(options)
    console, figures, skipped = Console(width=max(160, Console().width)), list[Figure](), list[str]()
    if why := _lacking():
        console.print(f"the benchmark needs {why}")
        return 1
    _end_in_order()
    _have_bytecode()
    signal.alarm(sizes.within)
    families = _families(sizes, skipped)
    code = 0
    for name in options.only or FAMILIES:
        began = time.monotonic()
        try:
            figures += families[name]()
            console.print(f"{name}: measured in {time.monotonic() - began:.0f} s", style="dim")
        except RuntimeError as error:
            skipped.append(f"{name}: {error}")
            code = 1
        except KeyboardInterrupt as end:
            skipped.append(f"{name} and what follows: {end}")
            code = 130
            break
    signal.alarm(0)
    show(figures, skipped, console)
    if options.json:
        write(figures, skipped, options.json)
    return code


def _families(sizes: Sizes, skipped: list[str]) -> dict[str, Callable[[], list[Figure]]]:
    return {
        "help": lambda: [command.help_figure(4 * sizes.rounds)],
        "loop": lambda: bring_up.loop_figures(sizes.disks, sizes.rounds, skipped),
        "qcow2": lambda: bring_up.qcow2_figures(sizes.taps, sizes.rounds),
        "steady": lambda: list(_steady(sizes, skipped)),
        "drift": lambda: drift.drift_figures(sizes.disks, sizes.taps, sizes.repairs),
        "growth": lambda: bring_up.growth_figures(*sizes.growth),
        "io": lambda: input_output.loop_figures(sizes.io, skipped),
        "taps": lambda: taps.tap_figures(sizes.taps, sizes.rounds, sizes.io, skipped),
    }


def _steady(sizes: Sizes, skipped: list[str]) -> Iterator[Figure]:
    with steady.steady_host(sizes.adopted) as host:
        yield from steady.memory_figures(host)
        yield steady.idle_figure(host, sizes.idle)
        yield again.restart_figure(host, sizes.rounds)
        yield from again.ioctl_figure(host, skipped)
        yield from change.disk_figures(host, sizes.changes)
        yield from change.document_figures(host, sizes.changes)
        yield again.redelivery_figure(host, sizes.redelivered, sizes.rounds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="the sizes that the targets are about")
    parser.add_argument("--disks", type=int, help="loop disks to bring up, and to have when steady")
    parser.add_argument("--taps", type=int, help="qcow2 disks to bring up")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    parser.add_argument("--only", type=_names, metavar="FAMILY,…", help=f"of {', '.join(FAMILIES)}")
    parser.add_argument("--within", type=int, metavar="SECONDS", help="be done by then, with what was measured so far")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(FAMILIES):
        raise argparse.ArgumentTypeError(f"no such family: {', '.join(sorted(unknown))}")
    return names


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = FULL if options.full else SMALL
    return Sizes(
        disks=options.disks or sizes.disks,
        taps=options.taps or sizes.taps,
        adopted=options.disks or sizes.adopted,
        changes=sizes.changes,
        repairs=sizes.repairs,
        redelivered=sizes.redelivered,
        idle=sizes.idle,
        growth=sizes.growth,
        rounds=options.rounds or sizes.rounds,
        io=sizes.io,
        within=options.within or sizes.within,
    )


def _lacking() -> str:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    os.environ["PATH"] = path  # where Debian keeps what only root uses
    lacking = [program for program in PROGRAMS if shutil.which(program) is None]
    lacking += [f"{node} (root, and its kernel module)" for node in NODES if not os.access(node, os.R_OK | os.W_OK)]
    return ", ".join(lacking)


def _have_bytecode() -> None:
    """Compile, as whatever installs tapster does; with PYTHONDONTWRITEBYTECODE each start would do it anew."""
    for package in (agent, reconcilers):
        compileall.compile_dir(package.__path__[0], quiet=1)


def _end_in_order() -> None:
    """Ctrl-C, SIGTERM and the limit unwind everything, once: a second one must not cut the cleaning short."""

    def leave(number: int, _: object) -> NoReturn:
        for each in _ENDS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(_ENDS[signal.Signals(number)])

    for each in _ENDS:
        signal.signal(each, leave)


if __name__ == "__main__":
    sys.exit(main())
