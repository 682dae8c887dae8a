"""Measure a fleet of real agents with simulated kernels on one mosquitto, and say what is lost, if anything.

    python -m tests.bench.fleet                       500 hosts and 1,000, two minutes
    python -m tests.bench.fleet --hosts 2500,5000     the sizes that the targets are about
    python -m tests.bench.fleet --json FILE           everything that was measured, for programs

Each size is a fleet of its own: so many agents in a few processes, one guest with four disks that every host gets by a
document of the group `all`. Rounds: everyone connects at once to a broker that has the document; a push to all, five
times; a push with 5 % of the hosts failing, which are mended then; a push with the broker restarted in the middle.
Sizes are compared by the medians of their rounds.

A round ends when the status of every host tells of the document and of all disks up (or failed, where they were made
to), heard by a `mosquitto_sub` on the same broker. The broker keeps the events until then, and all of them are fetched
and counted after the round. It runs where Linux, mosquitto and mosquitto-clients are. A round takes five minutes at
most; then it says what is missing, and goes on with the next size; the rounds before it count. Everything is taken
down again, also after Ctrl-C.

Besides hosts and broker there is who listens and writes down; its CPU is told, as it is taken from the same cores. How
busy the machine was with other things is told by its load at the beginning, and how fast it was by a piece of Python
that is always the same: seconds count where the load is near 0, and compare where the pace is the same.
"""

import argparse
import json
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.bench.fleet_run import Fleet, FleetError, Round, fleet
from tests.broker import Broker

FAILING = 0.05

PUSHES = 5
"""To all, one after the other: a single one takes a tenth more or less by chance."""


def main() -> int:
    """Run every size, print, write."""
    options = _options()
    console = Console(width=max(150, Console().width))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sizes = dict[int, list[Round]]()
    load, code = os.getloadavg()[0], 0
    for hosts in options.hosts:
        console.print(f"… {hosts} hosts in {options.processes} processes", style="dim")
        sizes[hosts] = []
        try:
            with fleet(hosts, options.processes, console) as running:
                for one in rounds(running):
                    console.print(f"  {one.name}: {one.seconds:.1f} s", style="dim")
                    sizes[hosts].append(one)
        except FleetError as error:
            console.print(f"{hosts} hosts: {error}", highlight=False, soft_wrap=True)
            code = 1
        except KeyboardInterrupt:
            code = 130
            break
    show(sizes, console)
    console.print(f"{len(os.sched_getaffinity(0))} cores; load at the beginning {load:.2f}", highlight=False)
    if options.json:
        tables = {str(hosts): [asdict(one) for one in some] for hosts, some in sizes.items()}
        options.json.write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "load": load, "rounds": tables}))
    return code


def rounds(running: Fleet) -> Iterator[Round]:
    """The rounds, in order."""
    broker: Broker = running.broker
    everyone = running.hosts
    first, *pushes, with_failures, with_restart = range(1, 4 + PUSHES)
    yield running.measured("cold start", lambda: running.push_and_start(first), first, up=everyone)
    for generation in pushes:
        yield running.measured("push to all", partial(running.push, generation), generation, up=everyone)

    def push_to_some_that_fail() -> None:
        running.tell(f"fail {FAILING}")
        running.push(with_failures)

    failing, name = running.failing(FAILING), f"{100 * FAILING:g} % of the hosts fail"
    yield running.measured(name, push_to_some_that_fail, with_failures, up=everyone - failing, failed=failing)
    yield running.measured("… and are mended", lambda: running.tell("mend"), with_failures, up=everyone)

    def push_and_restart() -> None:
        running.push(with_restart)
        broker.restart()

    yield running.measured("broker restarted in the middle", push_and_restart, with_restart, up=everyone)


def show(sizes: dict[int, list[Round]], console: Console) -> None:
    """Print the table, and how time grows with hosts."""
    table = Table(title="A fleet on one broker and two cores, or as many as there are", title_justify="left")
    for heading in (
        *("hosts", "round", "seconds to the last status", "half of the hosts", "messages a host", "lost events"),
        *("CPU ms a host", "broker CPU s", "ear CPU s", "broker RSS MB", "agents RSS MB a host", "pace ms"),
    ):
        is_name = heading == "round"
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name)
    for hosts, some in sizes.items():
        for one in some:
            table.add_row(
                str(hosts),
                one.name,
                f"{one.seconds:.2f}",
                f"{one.half:.2f}",
                f"{one.messages / hosts:.1f}",
                str(one.lost),
                f"{1000 * one.agents_cpu / hosts:.2f}",
                f"{one.broker_cpu:.2f}",
                f"{one.ear_cpu:.2f}",
                f"{one.broker_rss:.0f}",
                f"{one.agents_rss / hosts:.2f}",
                f"{one.pace:.0f}",
            )
    console.print(table)
    for small, large in zip(sizes, list(sizes)[1:], strict=False):
        few, many = _medians(sizes[small]), _medians(sizes[large])
        for name in filter(few.get, many):
            time, cpu = many[name].seconds / few[name].seconds, many[name].cpu / few[name].cpu
            words = f"{large / small:g} times the hosts cost {time:.2f} times the time, {cpu:.2f} times the CPU"
            console.print(f"{name}: {words}", highlight=False)


class _Cost(NamedTuple):
    """What rounds of one name took, each the median."""

    seconds: float
    cpu: float


def _medians(some: Sequence[Round]) -> dict[str, _Cost]:
    by_name: dict[str, list[Round]] = {}
    for one in some:
        by_name.setdefault(one.name, []).append(one)
    return {
        name: _Cost(median(one.seconds for one in alike), median(one.cpu for one in alike))
        for name, alike in by_name.items()
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=_numbers, default=[500, 1000], metavar="N,…", help="sizes, the smallest first")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--processes", type=int, default=cores, help="for the hosts of a fleet; one a core, if not given"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
