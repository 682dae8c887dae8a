"""`tapster watch`: the status as it changes, on a full screen, or as a line for each change where there is none."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.live import Live

from agent.bus.operator import BusError, Operator, operator
from agent.bus.topics import FleetTopics
from agent.cli.ending import until_enough
from agent.cli.keyboard import keys
from agent.cli.screen import View, page_of, render
from agent.cli.status import nothing
from agent.cli.tables import backend, console
from agent.fleet.look import look, shown
from agent.fleet.targets import Selection
from agent.fleet.view import Fleet
from agent.fleet.words import printable
from agent.settings import Settings

TICK_SECONDS = 1.0
"""How often ages are drawn anew."""

DRAW_SECONDS = 0.1
"""How often the screen is drawn at most, however much is going on."""

AGAIN_SECONDS = 2.0
"""Pause before a lost broker is tried again."""

Lines = dict[str, str]
"""What is known of each host and disk, as a line says it, by its name."""

Show = Callable[[Fleet | None, str], None]
"""Shows a fleet, or the last one again, and a note: that what was asked for is not there, or the broker is away."""


def run(*, wanted: Selection | None, guest: str | None, view: View, settings: Settings) -> int:
    """Follow hosts and guests until Ctrl-C or `q`. A broker that goes away later is waited for.

    Args:
        wanted: Only these hosts.
        guest: Only guests of this name.
        view: How the screen begins; its filter counts for lines, too.
        settings: Say which broker and which fleet.

    Returns:
        0 at the end, 1 if the broker could not be reached at the start.
    """
    follow = _on_screen if sys.stdout.isatty() else _in_lines
    return until_enough("watch", follow(wanted, guest, view, settings))


async def _in_lines(wanted: Selection | None, guest: str | None, view: View, settings: Settings) -> None:
    known: Lines = {}
    said = ""

    def show(fleet: Fleet | None, note: str) -> None:
        nonlocal said
        if note not in {"", said}:
            sys.stderr.write(f"tapster watch: {note}\n")
        said = note
        if fleet is not None:
            _print_changes(known, fleet, view.text.lower())

    await _follow(wanted, guest, settings, show)


async def _on_screen(wanted: Selection | None, guest: str | None, view: View, settings: Settings) -> None:
    """The full screen, drawn anew when something is heard, a key is pressed, or time passes."""
    out = console()
    screen = _Screen(view)
    with Live(console=out, screen=True, auto_refresh=False) as live:

        def draw() -> None:
            live.update(render(screen.fleet, screen.view, out.height, screen.note), refresh=True)

        def show(fleet: Fleet | None, note: str) -> None:
            screen.fleet, screen.note = fleet or screen.fleet, note
            draw()

        def press(key: str) -> None:
            after = screen.view.press(key, page_of(out.height))
            if after is None:
                following.cancel()
                return
            screen.view = after
            draw()

        screen.fleet = Fleet(FleetTopics(settings.fleet))
        following = asyncio.ensure_future(_follow(wanted, guest, settings, show))
        try:
            with keys(press):
                await asyncio.wait((following,))
        finally:
            following.cancel()
    if not following.cancelled():
        following.result()


@dataclass(slots=True)
class _Screen:
    """What is shown and how."""

    view: View
    fleet: Fleet = field(init=False)
    note: str = ""


async def _follow(wanted: Selection | None, guest: str | None, settings: Settings, show: Show) -> None:
    seen, loop = False, asyncio.get_running_loop()
    while True:
        try:
            async with operator(settings) as op:
                fleet = await look(op, wanted, guest)
                seen = True
                while True:
                    meant = shown(fleet, wanted)
                    show(meant, nothing(meant, wanted, guest, settings) or "")
                    await _take_in(op, fleet, loop.time() + TICK_SECONDS)
        except BusError as error:
            if not seen:
                raise
            show(None, f"{error}; trying again")
            await asyncio.sleep(AGAIN_SECONDS)


async def _take_in(op: Operator, fleet: Fleet, until: float) -> None:
    """Take in what comes: until there is a pause, or for as long as a screen may stay as it is."""
    loop = asyncio.get_running_loop()
    message = await op.message(until - loop.time())
    if message is None:
        return
    fleet.take(message)
    soon = loop.time() + DRAW_SECONDS
    while (left := soon - loop.time()) > 0 and (message := await op.message(left)) is not None:
        fleet.take(message)


def _print_changes(known: Lines, fleet: Fleet, text: str) -> None:
    """Print what is not yet known, and know it."""
    lines = {name: line for name, line in _lines(fleet).items() if text in f"{name} {line}".lower()}
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
