"""`tapster get guests|disks|hosts`: what the bus retains, as a table or for programs, once or as it changes."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from agent.bus.operator import operator
from agent.cli.ending import until_enough
from agent.cli.status import nothing
from agent.cli.tables import STATES, STYLES, age, backend, console, size
from agent.fleet.clocks import told
from agent.fleet.look import look, shown
from agent.fleet.targets import Selection
from agent.fleet.view import Fleet, rejection
from agent.fleet.words import names, printable
from agent.settings import Settings
from agent.status import AT_REST

Format = Literal["table", "wide", "json", "yaml"]
Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing that there is in a fleet.

    Attributes:
        columns: Of the table, the wide ones at its end.
        narrow: How many of them a table has that is not wide.
        rows: The cells of each thing, by its name.
        objects: Each thing for programs.
    """

    columns: Row
    narrow: int
    rows: Callable[[Fleet], dict[str, Row]]
    objects: Callable[[Fleet], list[dict[str, Any]]]


def run(
    kind: str, names: Sequence[str], *, wanted: Selection | None, watch: bool, settings: Settings, output: Format
) -> int:
    """Print things of one kind.

    Args:
        kind: `guests`, `disks` or `hosts`.
        names: Only those of these names; for disks, of these guests.
        wanted: Only on these hosts.
        watch: Go on with a line, or an object, for each change until Ctrl-C.
        settings: Say which broker and which fleet.
        output: `wide` has more columns; JSON is a list, and with `watch` an object a line.

    Returns:
        0, or 1 if something is not there that was asked for, can't be read by this version, or the bus can't be used.
    """
    found = _get(kind, frozenset(names), wanted=wanted, watch=watch, settings=settings, output=output)
    return until_enough("get", found, ends=not watch)


async def _get(
    word: str, names: frozenset[str], *, wanted: Selection | None, watch: bool, settings: Settings, output: Format
) -> int:
    kind = KINDS[word]
    async with operator(settings) as op:
        guest = next(iter(names)) if word != "hosts" and len(names) == 1 else None
        fleet = await look(op, wanted, guest, glances=word == "hosts")
        meant = shown(fleet, wanted)
        view = _named(meant, word, names)
        rows = kind.rows(view)
        missing = nothing(meant, wanted, guest, settings) or _missing(meant, word, names, rows)
        if missing:
            sys.stderr.write(f"tapster get: {missing}\n")
        _print(kind, view, rows, output, as_list=not watch)
        for topic, why in sorted(fleet.unreadable.items()):
            sys.stderr.write(f"tapster get: {topic} can't be read by this version: {why}\n")
        if clocks := told(view, datetime.now(UTC)):
            sys.stderr.write(f"tapster get: {clocks}\n")
        while watch:
            message = await op.message()
            if message is not None:
                fleet.take(message)
            view = _named(shown(fleet, wanted), word, names)
            before, rows = rows, kind.rows(view)
            _print_changes(kind, view, before, rows, output)
        return 1 if missing or fleet.unreadable else 0


def _named(fleet: Fleet, word: str, names: frozenset[str]) -> Fleet:
    if not names:
        return fleet
    if word == "hosts":
        return fleet.only(lambda host: host in names)
    guests = {key: status for key, status in fleet.guests.items() if key[1] in names}
    return Fleet(fleet.topics, fleet.hosts, guests, fleet.glances, fleet.unreadable)


def _missing(fleet: Fleet, word: str, asked: frozenset[str], rows: dict[str, Row]) -> str | None:
    """What to say of names that are not there, or where there is nothing at all."""
    there = fleet.hosts.keys() if word == "hosts" else {guest for _, guest in fleet.guests}
    if absent := sorted(asked - there):
        kind = "host" if word == "hosts" else "guest"
        return f"there is no {kind} {names([repr(name) for name in absent])} here; without a name, all are shown"
    return None if rows else f"there are no such {word}; without a name, all are shown"


def _print(kind: Kind, view: Fleet, rows: dict[str, Row], output: Format, *, as_list: bool) -> None:
    if output in {"table", "wide"}:
        if rows:
            _print_table(kind, list(rows.values()), output, headed=True)
        return
    objects = kind.objects(view)
    if as_list:
        sys.stdout.write(_document(objects, output))
    else:
        for thing in objects:
            sys.stdout.write(_line(thing, output))
    sys.stdout.flush()


def _print_changes(kind: Kind, view: Fleet, before: dict[str, Row], rows: dict[str, Row], output: Format) -> None:
    changed = [name for name in rows if _settled(rows[name], kind) != _settled(before.get(name, ()), kind)]
    gone = sorted(before.keys() - rows.keys())
    if output in {"table", "wide"}:
        if changed:
            _print_table(kind, [rows[name] for name in changed], output, headed=False)
        for name in gone:
            sys.stdout.write(f"{printable(name)} is gone\n")
    else:
        objects = dict(zip(rows, kind.objects(view), strict=True))
        for name in changed:
            sys.stdout.write(_line(objects[name], output))
        for name in gone:
            sys.stderr.write(f"{printable(name)} is gone\n")
    sys.stdout.flush()


def _settled(row: Row, kind: Kind) -> list[str]:
    """A row without its ages, which change by themselves."""
    return [cell for cell, column in zip(row, kind.columns, strict=False) if column not in {"AGE", "SINCE"}]


def _print_table(kind: Kind, rows: Sequence[Row], output: Format, *, headed: bool) -> None:
    columns = kind.columns if output == "wide" else kind.columns[: kind.narrow]
    table = Table(*columns, box=None, pad_edge=False, show_header=headed)
    styles: dict[str, str] = {**{phase.value: style for phase, style in STYLES.items()}, **STATES}
    for row in rows:
        cells = [Text(printable(cell), style=styles.get(cell, ""), overflow="fold") for cell in row[: len(columns)]]
        table.add_row(*cells)
    console().print(table)


def _document(objects: list[dict[str, Any]], output: Format) -> str:
    return json.dumps(objects, indent=2) + "\n" if output == "json" else _yaml(objects)


def _line(thing: dict[str, Any], output: Format) -> str:
    return json.dumps(thing) + "\n" if output == "json" else "---\n" + _yaml(thing)


def _yaml(value: object) -> str:
    import yaml  # noqa: PLC0415 - only this output needs it

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _hosts(fleet: Fleet) -> dict[str, Row]:
    return {host: _host_row(fleet, host) for host in sorted(fleet.hosts)}


def _host_row(fleet: Fleet, host: str) -> Row:
    agent, glance = fleet.hosts[host], fleet.glances.get(host)
    phases = glance.disks_by_phase if glance else {}
    well = sum(count for phase, count in phases.items() if phase in AT_REST)
    return (
        host,
        agent.state,
        f"{well}/{sum(phases.values())}" if glance else "-",
        str(glance.guests) if glance else "-",
        agent.version,
        ",".join(f"{name}={text}" for name, text in sorted(agent.labels.items())) or "-",
        ",".join(agent.groups) or "-",
        ",".join(agent.capabilities.backends) or "-",
        ",".join(agent.capabilities.formats) or "-",
        agent.capabilities.kernel,
    )


def _host_objects(fleet: Fleet) -> list[dict[str, Any]]:
    return [
        {"host": host, **agent.model_dump(mode="json"), "status": _glance(fleet, host)}
        for host, agent in sorted(fleet.hosts.items())
    ]


def _glance(fleet: Fleet, host: str) -> dict[str, Any] | None:
    glance = fleet.glances.get(host)
    return glance.model_dump(mode="json") if glance else None


def _guests(fleet: Fleet) -> dict[str, Row]:
    return {
        f"{status.host}/{status.guest}": (
            status.host,
            status.guest,
            status.phase,
            f"{sum(disk.phase in AT_REST for disk in status.disks)}/{len(status.disks)}",
            str(status.observed_generation if status.observed_generation is not None else "-"),
            rejection(status) or next((disk.error.reason for disk in status.disks if disk.error), "-"),
            (status.sha256 or "-")[:12],
        )
        for status in fleet.ordered()
    }


def _guest_objects(fleet: Fleet) -> list[dict[str, Any]]:
    return [status.model_dump(mode="json") for status in fleet.ordered()]


def _disks(fleet: Fleet) -> dict[str, Row]:
    return {
        f"{status.host}/{status.guest}/{disk.target}": (
            status.host,
            status.guest,
            disk.target,
            disk.phase,
            backend(disk),
            size(disk.size_bytes),
            age(disk.since),
            disk.error.reason if disk.error else "-",
            disk.device_path or "-",
            disk.stable_path or "-",
            disk.source or "-",
        )
        for status in fleet.ordered()
        for disk in status.disks
    }


def _disk_objects(fleet: Fleet) -> list[dict[str, Any]]:
    return [
        {"host": status.host, "guest": status.guest, **disk.model_dump(mode="json")}
        for status in fleet.ordered()
        for disk in status.disks
    ]


KINDS: dict[str, Kind] = {
    "hosts": Kind(
        ("HOST", "STATE", "DISKS", "GUESTS", "VERSION", "LABELS", "GROUPS", "BACKENDS", "FORMATS", "KERNEL"),
        6,
        _hosts,
        _host_objects,
    ),
    "guests": Kind(
        ("HOST", "GUEST", "PHASE", "DISKS", "GENERATION", "WHY", "SHA256"),
        6,
        _guests,
        _guest_objects,
    ),
    "disks": Kind(
        ("HOST", "GUEST", "TARGET", "PHASE", "BACKEND", "SIZE", "SINCE", "WHY", "DEVICE", "STABLE PATH", "SOURCE"),
        8,
        _disks,
        _disk_objects,
    ),
}
"""What there is, by the word for it. `DISKS` counts those that are as they should be, of all."""
