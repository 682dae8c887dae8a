"""What `tapster status` and `tapster watch` show: hosts, a table of disks, and what to do about the rest."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from agent.fleet.clocks import SKEW
from agent.fleet.view import Fleet, rejection, trouble
from agent.fleet.words import outage, printable, sentence
from agent.status import DiskStatus, Effective, Phase, Requested

STYLES = {
    Phase.UP: "green",
    Phase.DOWN: "dim",
    Phase.PENDING: "cyan",
    Phase.ATTACHING: "cyan",
    Phase.DETACHING: "cyan",
    Phase.WITHDRAWN: "yellow",
    Phase.DEGRADED: "yellow",
    Phase.IN_USE: "yellow",
    Phase.ORPHANED: "yellow",
    Phase.REFUSED: "red",
    Phase.FAILED: "bold red",
    Phase.LOST: "bold red",
}
STATES = {"online": "green", "offline": "yellow", "lost": "bold red"}

WIDE = 120
"""Columns from which on the table has all of its own."""

PIPE_WIDTH = 4096
"""Columns where no terminal says how many there are: enough that nothing is folded in a log."""


def console(*, stderr: bool = False) -> Console:
    """A console that takes text as it is; in a pipe it does not fold at 80 columns."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False, soft_wrap=False)


def fleet_view(fleet: Fleet) -> RenderableType:
    """Everything there is to show."""
    parts: list[RenderableType] = [*_hosts(fleet)]
    if fleet.guests:
        parts += [_DiskTable(fleet), *_sentences(fleet)]
    return Group(*parts)


def size(count: int | None) -> str:
    """Bytes as people read them: `4.0 GiB`."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:  # noqa: PLR2004 - the step from unit to unit
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def age(since: datetime) -> str:
    """Time since a moment, by its largest unit: `45s`, `12m`, `3h`, `9d`; `2h ahead` by a clock that is ahead."""
    passed = datetime.now(UTC) - since
    return f"{_by_largest_unit(-passed)} ahead" if -passed > SKEW else _by_largest_unit(max(passed, timedelta()))


def lasting(since: datetime) -> str:
    """How long something has been so: `for 3h`, or since when by a clock that is ahead."""
    told = age(since)
    return f"since a moment {told}" if told.endswith("ahead") else f"for {told}"


def _by_largest_unit(time: timedelta) -> str:
    seconds = int(time.total_seconds())
    for length, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def backend(disk: DiskStatus) -> str:
    """What was asked for, and what serves it where that differs: `blktap qcow → storage-daemon`."""
    asked = _words(disk.requested)
    if disk.effective is None:
        return asked
    given = _words(disk.effective)
    server = "" if disk.effective.server.startswith("kernel") else f" by {disk.effective.server}"
    return f"{asked}{server}" if given == asked else f"{asked} → {given}{server}"


def _words(what: Requested | Effective) -> str:
    return " ".join(word for word in (what.backend, what.format) if word) or "-"


def _hosts(fleet: Fleet) -> Iterator[Text]:
    for name in sorted({*fleet.hosts, *(host for host, _ in fleet.guests)}):
        agent = fleet.hosts.get(name)
        if agent is None:
            yield Text(f"host {name}: its agent has said nothing about itself", style="yellow")
            continue
        line = Text(f"host {name}: ")
        line.append(agent.state, STATES[agent.state])
        backends = ", ".join(agent.capabilities.backends) or "no backend"
        yield line.append(printable(f", tapster {agent.version}, {backends}"))


@dataclass(frozen=True, slots=True)
class _DiskTable:
    """Every disk, a line each. A narrow terminal is spared what follows from the rest or is for few."""

    fleet: Fleet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE
        several = len({host for host, _ in self.fleet.guests}) > 1
        names = ("GUEST", "TARGET", "PHASE", "BACKEND", "SIZE", "DEVICE", "SINCE", "WHY")
        table = Table(*names, *(["STABLE PATH"] if wide else []), box=None, pad_edge=False)
        for status in self.fleet.ordered():
            name = f"{status.host}: {status.guest}" if several else status.guest
            for disk in status.disks:
                table.add_row(*_cells(name, disk, wide=wide))
            if not status.disks:
                table.add_row(Text(printable(name)), "-", Text(status.phase, style=STYLES[status.phase]))
        yield table


def _cells(name: str, disk: DiskStatus, *, wide: bool) -> list[Text]:
    cells = [
        name,
        disk.target,
        disk.phase,
        backend(disk) if wide else _words(disk.effective or disk.requested),
        size(disk.size_bytes),
        disk.device_path or "-",
        age(disk.since),
        disk.error.reason if disk.error else "-",
        *([disk.stable_path or "-"] if wide else []),
    ]
    row = [Text(printable(cell), overflow="fold") for cell in cells]
    row[2].stylize(STYLES[disk.phase])
    return row


def _sentences(fleet: Fleet) -> Iterator[Text]:
    for status in fleet.ordered():
        if why := rejection(status):
            name = f"{status.host}: {status.guest}"
            yield Text(printable(f"{name}: the last document was turned away: {why}"), style="red")
        if status.phase is Phase.WITHDRAWN:
            yield Text(printable(f"{status.host}: {status.guest} is {status.phase}: its document was removed"))
        for disk in trouble(status):
            yield Text(sentence(status, disk), style=STYLES[disk.phase])
        for disk in status.disks:
            if told := outage(status, disk):
                yield Text(told, style="yellow")
