"""The full screen of `tapster watch`: what is shown of a fleet, in what order, and what keys do to that. Pure."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agent.cli.tables import STATES, STYLES, age, backend, size
from agent.fleet.view import Fleet, rejection
from agent.fleet.words import counted, printable
from agent.guest_status import WORST_FIRST
from agent.status import AT_REST, DiskStatus, GuestStatus, Phase

_LINES_AROUND = 4
"""Lines of the screen that are no disks: the summary, the heads, the line below and the keys."""

_ORDER = {phase: number for number, phase in enumerate(WORST_FIRST)}
_KEYS = "←→ sort · r reverse · / filter · t trouble only · ↑↓ PgUp PgDn scroll · q quit"


@dataclass(frozen=True, slots=True)
class Row:
    """One disk; of a guest without disks, the guest."""

    status: GuestStatus
    disk: DiskStatus | None

    @property
    def phase(self) -> Phase:
        """Of the disk, or of the guest."""
        return self.disk.phase if self.disk else self.status.phase

    @property
    def why(self) -> str:
        """What is wrong, in a word; more than that where the whole guest's document is."""
        if self.disk and self.disk.error:
            return self.disk.error.reason
        return rejection(self.status) or "-"

    def cells(self) -> tuple[str, ...]:
        """What stands in its line."""
        status, disk = self.status, self.disk
        if disk is None:
            return (status.host, status.guest, "-", status.phase, "-", "-", "-", self.why)
        served = backend(disk)
        since = age(disk.since)
        return (status.host, status.guest, disk.target, disk.phase, served, size(disk.size_bytes), since, self.why)


Key = Callable[[Row], tuple[object, ...]]

COLUMNS: dict[str, Key] = {
    "host": lambda row: (row.status.host,),
    "guest": lambda row: (row.status.guest,),
    "target": lambda row: (row.disk.target if row.disk else "",),
    "phase": lambda row: (_ORDER.get(row.phase, len(_ORDER)),),
    "backend": lambda row: (backend(row.disk) if row.disk else "",),
    "size": lambda row: (-(row.disk.size_bytes or 0) if row.disk else 0,),
    "since": lambda row: (-row.disk.since.timestamp() if row.disk else 0.0,),
    "why": lambda row: (row.why == "-", row.why),
}
"""The table's columns, and what each sorts by: the worst, the largest and the newest first."""


@dataclass(frozen=True, slots=True)
class View:
    """What the screen shows of a fleet.

    Attributes:
        sort: The column that it is sorted by.
        reverse: The other way round.
        text: Only lines that contain it; capitals make no difference.
        typing: The filter is being typed.
        trouble: Only what is not as it should be.
        top: The first line shown.
    """

    sort: str = "phase"
    reverse: bool = False
    text: str = ""
    typing: bool = False
    trouble: bool = False
    top: int = 0

    def press(self, key: str, page: int) -> "View | None":
        """The view after a key; None after the one that ends it.

        Args:
            key: A character, or the escape sequence of a key that has none.
            page: How many lines the screen has for disks.
        """
        if key == "\x04" or (not self.typing and key == "q"):
            return None
        return self._typed(key) if self.typing else self._commanded(key, page)

    def _commanded(self, key: str, page: int) -> "View":
        steps = {"\x1b[A": -1, "k": -1, "\x1b[B": 1, "j": 1, "\x1b[5~": -page, "\x1b[6~": page, " ": page}
        changes: dict[str, Callable[[], View]] = {
            "\x1b[C": lambda: replace(self, sort=_beside(self.sort, 1), top=0),
            "\x1b[D": lambda: replace(self, sort=_beside(self.sort, -1), top=0),
            "r": lambda: replace(self, reverse=not self.reverse, top=0),
            "t": lambda: replace(self, trouble=not self.trouble, top=0),
            "/": lambda: replace(self, typing=True, text="", top=0),
            "\x1b": lambda: replace(self, text="", trouble=False, top=0),
        }
        return changes.get(key, lambda: replace(self, top=max(0, self.top + steps.get(key, 0))))()

    def rows(self, fleet: Fleet) -> list[Row]:
        """All lines that are meant, in order."""
        found = [Row(status, disk) for status in fleet.ordered() for disk in (status.disks or (None,))]
        if self.trouble:
            found = [row for row in found if row.phase not in AT_REST or row.why != "-"]
        if self.text:
            needle = self.text.lower()
            found = [row for row in found if needle in " ".join(row.cells()).lower()]
        return sorted(found, key=COLUMNS[self.sort], reverse=self.reverse)

    def _typed(self, key: str) -> "View":
        match key:
            case "\r" | "\n":
                return replace(self, typing=False)
            case "\x1b":
                return replace(self, typing=False, text="")
            case "\x7f" | "\b":
                return replace(self, text=self.text[:-1])
            case _ if key.isprintable() and len(key) == 1:
                return replace(self, text=self.text + key)
            case _:
                return self


def page_of(height: int) -> int:
    """How many lines a screen has for disks."""
    return max(1, height - _LINES_AROUND)


def render(fleet: Fleet, view: View, height: int, note: str = "") -> RenderableType:
    """The whole screen.

    Args:
        fleet: What is known.
        view: What is to be shown of it.
        height: Lines of the terminal.
        note: What to say instead of the keys, about a broker that is away for example.
    """
    rows, page = view.rows(fleet), page_of(height)
    top = min(view.top, max(0, len(rows) - page))
    shown = rows[top : top + page]
    table = Table(box=None, pad_edge=False, expand=True)
    for name in COLUMNS:
        table.add_column(_head(name, view))
    for row in shown:
        cells = [Text(printable(cell), overflow="ellipsis", no_wrap=True) for cell in row.cells()]
        cells[3].stylize(STYLES[row.phase])
        table.add_row(*cells)
    blank = Text("\n" * max(0, page - len(shown) - 1))
    place = f"{top + 1}-{top + len(shown)} of {counted(len(rows), 'line')}" if rows else "nothing to show"
    only = " · trouble only" if view.trouble else ""
    cursor = "█" if view.typing else ""
    named = f" · filter: {printable(view.text)}{cursor}" if view.text or view.typing else ""
    below = Text(f"{place}{only}{named}", style="dim")
    keys = Text(note or _KEYS, style="yellow" if note else "dim", no_wrap=True, overflow="ellipsis")
    filler = [blank] if len(shown) < page else []
    return Group(_summary(fleet), table, *filler, below, keys)


def _summary(fleet: Fleet) -> Text:
    states = Counter(agent.state for agent in fleet.hosts.values())
    phases = Counter(disk.phase for status in fleet.guests.values() for disk in status.disks)
    line = Text(f"{counted(len(fleet.hosts), 'host')}:", no_wrap=True, overflow="ellipsis")
    for state, count in sorted(states.items()):
        line.append(f" {count} {state}", STATES[state])
    line.append(f" · {counted(phases.total(), 'disk')}:")
    for phase, count in sorted(phases.items(), key=lambda item: _ORDER.get(item[0], len(_ORDER))):
        line.append(f" {count} {phase}", STYLES[phase])
    return line


def _head(name: str, view: View) -> Text:
    if name != view.sort:
        return Text(name.upper())
    return Text(f"{name.upper()}{'▲' if view.reverse else '▼'}", style="reverse")


def _beside(name: str, step: int) -> str:
    columns = list(COLUMNS)
    return columns[(columns.index(name) + step) % len(columns)]
