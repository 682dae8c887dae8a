"""`tapster watch`: the status as it changes, as a live table on a terminal and as a line for each change elsewhere."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from rich.live import Live

from agent.bus.operator import BusError, operator
from agent.bus.topics import TopicError
from agent.cli.tables import backend, console, fleet_view
from agent.fleet.look import look, shown
from agent.fleet.targets import Selection
from agent.fleet.view import Fleet
from agent.fleet.words import printable
from agent.settings import Settings

TICK_SECONDS = 1.0
"""How often ages are drawn anew."""

AGAIN_SECONDS = 2.0
"""Pause before a lost broker is tried again."""

Lines = dict[str, str]
"""What is known of each host and disk, as a line says it, by its name."""


def run(*, wanted: Selection | None, guest: str | None, settings: Settings) -> int:
    """Follow hosts and guests until Ctrl-C. A broker that goes away later is waited for.

    Args:
        wanted: Only these hosts.
        guest: Only guests of this name.
        settings: Say which broker and which fleet.

    Returns:
        0 after Ctrl-C, 1 if the broker could not be reached at the start.
    """
    try:
        with _screen() as show:
            asyncio.run(_follow(wanted, guest, settings, show))
    except (BusError, TopicError) as error:
        sys.stderr.write(f"tapster watch: {error}\n")
        return 1
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        pass
    return 0


async def _follow(
    wanted: Selection | None, guest: str | None, settings: Settings, show: Callable[[Fleet], None]
) -> None:
    seen = False
    while True:
        try:
            async with operator(settings) as op:
                fleet = await look(op, wanted, guest)
                seen = True
                while True:
                    show(shown(fleet, wanted))
                    message = await op.message(TICK_SECONDS)
                    if message is not None:
                        fleet.take(message)
        except BusError as error:
            if not seen:
                raise
            sys.stderr.write(f"tapster watch: {error}; trying again\n")
            await asyncio.sleep(AGAIN_SECONDS)


@contextmanager
def _screen() -> Iterator[Callable[[Fleet], None]]:
    """What shows a fleet each time that it is called."""
    if not sys.stdout.isatty():
        known: Lines = {}
        yield lambda fleet: _print_changes(known, fleet)
        return
    with Live(console=console(), auto_refresh=False) as live:
        yield lambda fleet: live.update(fleet_view(fleet), refresh=True)


def _print_changes(known: Lines, fleet: Fleet) -> None:
    """Print what is not yet known, and know it."""
    lines = _lines(fleet)
    at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    for name in sorted(known.keys() | lines.keys()):
        if lines.get(name) != known.get(name):
            sys.stdout.write(f"{at} {name} {lines.get(name, 'gone')}\n")
    sys.stdout.flush()
    known.clear()
    known.update(lines)


def _lines(fleet: Fleet) -> Lines:
    lines: Lines = {host: agent.state for host, agent in fleet.hosts.items()}
    for status in fleet.ordered():
        guest = f"{status.host}/{status.guest}"
        lines[printable(guest)] = status.phase
        for disk in status.disks:
            why = f" {disk.error.reason}: {disk.error.message}" if disk.error else ""
            device = f" {disk.device_path}" if disk.device_path else ""
            lines[printable(f"{guest}/{disk.target}")] = printable(f"{disk.phase} {backend(disk)}{device}{why}")
    return lines
