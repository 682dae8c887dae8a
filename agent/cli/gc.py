"""`tapster gc`: take down disks that no document names, after showing them and asking.

Nothing else ever touches an orphan: a lost store or an emptied broker must not take disks from guests. What is taken
down is taken down by the agent, on an absent document, so a disk in use stays as it always does.
"""

import asyncio
import json
import sys
from contextlib import redirect_stdout
from typing import Literal

from rich.table import Table
from rich.text import Text

from agent.bus.operator import BusError, operator
from agent.bus.topics import TopicError
from agent.cli import push
from agent.cli.status import nothing
from agent.cli.tables import console, size
from agent.fleet.look import look
from agent.fleet.order import Order
from agent.fleet.targets import Selection
from agent.fleet.words import printable
from agent.settings import Settings
from agent.status import GuestStatus, Phase


def run(*, host: str, yes: bool, timeout: float, settings: Settings, output: Literal["table", "json"]) -> int:
    """Show a host's orphaned disks, ask, and take them down.

    Args:
        host: The host.
        yes: Don't ask.
        timeout: Seconds to wait for each guest's disks to be down.
        settings: Say which broker and which fleet.
        output: A table, or a list of the guests' statuses as JSON, to standard output alone.

    Returns:
        0 if there is no orphan any more, 1 if one is left, the host never was there or the bus can't be used.
    """
    try:
        orphans, missing = asyncio.run(_orphans(host, settings))
    except (BusError, TopicError) as error:
        sys.stderr.write(f"tapster gc: {error}\n")
        return 1
    if output == "json":
        sys.stdout.write(json.dumps([guest.model_dump(mode="json") for guest in orphans], indent=2) + "\n")
    elif orphans:
        _print(orphans)
    if missing:
        sys.stderr.write(f"tapster gc: {missing}\n")
        return 1
    if not orphans:
        sys.stderr.write(f"tapster gc: {host} has no disk that no document names\n")
        return 0
    if not yes and not _agreed(len(orphans)):
        sys.stderr.write("tapster gc: nothing was touched\n")
        return 1
    order = Order(Selection(hosts=(host,)), seconds=timeout)
    guests = [guest.guest for guest in orphans]
    with redirect_stdout(sys.stderr if output == "json" else sys.stdout):  # what a program reads is JSON alone
        return push.take_down(guests, order, agreed=True, settings=settings, output="table", command="gc")


async def _orphans(host: str, settings: Settings) -> tuple[list[GuestStatus], str | None]:
    """Guests with orphaned disks, or what to say where there is no such host."""
    wanted = Selection(hosts=(host,))
    async with operator(settings) as bus:
        fleet = await look(bus, wanted, None)
    orphans = [guest for guest in fleet.ordered() if any(disk.phase is Phase.ORPHANED for disk in guest.disks)]
    return orphans, nothing(fleet, wanted, None, settings)


def _print(orphans: list[GuestStatus]) -> None:
    table = Table("GUEST", "TARGET", "BACKEND", "SIZE", "DEVICE", "SINCE", box=None, pad_edge=False)
    for guest in orphans:
        for disk in guest.disks:
            backend = disk.effective.backend if disk.effective else "-"
            since = disk.since.strftime("%Y-%m-%d %H:%M")
            row = (guest.guest, disk.target, backend, size(disk.size_bytes), disk.device_path or "-", since)
            table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    console().print(table)


def _agreed(guests: int) -> bool:
    sys.stderr.write(f"take the disks of {guests} guest{'s' if guests > 1 else ''} down? Images are kept. [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
