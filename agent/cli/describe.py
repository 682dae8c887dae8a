"""`tapster describe host|guest NAME`: all that the bus says about one thing, in words."""

import asyncio
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Literal

from agent.bus.operator import BusError, operator
from agent.bus.topics import TopicError
from agent.cli.status import nothing
from agent.cli.tables import backend, lasting, size
from agent.fleet.census import Census, take_census
from agent.fleet.clocks import ahead
from agent.fleet.look import look, shown
from agent.fleet.targets import Selection
from agent.fleet.view import Fleet, trouble
from agent.fleet.words import outage, printable, sentence
from agent.settings import Settings
from agent.status import Capabilities, Condition, DiskStatus, GuestStatus

Lines = Iterator[str]


def run(kind: Literal["host", "guest"], name: str, *, wanted: Selection | None, settings: Settings) -> int:
    """Print what is known of a host, or of a guest on each host that has it.

    Args:
        kind: What it is.
        name: What it is called.
        wanted: For a guest: only on these hosts.
        settings: Say which broker and which fleet.

    Returns:
        0, or 1 if there is no such thing or the bus can't be used.
    """
    try:
        text, missing = asyncio.run(
            _host(name, settings) if kind == "host" else _guest(name, wanted or Selection(every=True), settings)
        )
    except (BusError, TopicError) as error:
        sys.stderr.write(f"tapster describe: {error}\n")
        return 1
    sys.stdout.write(text)
    if missing:
        sys.stderr.write(f"tapster describe: {missing}\n")
    return 1 if missing else 0


async def _host(name: str, settings: Settings) -> tuple[str, str | None]:
    wanted = Selection(hosts=(name,))
    async with operator(settings) as op:
        fleet = await look(op, wanted, None, glances=True)
    if missing := nothing(fleet, wanted, None, settings):
        return "", missing
    return "".join(f"{line}\n" for line in _host_lines(fleet, name)), None


def _host_lines(fleet: Fleet, name: str) -> Lines:
    agent, glance = fleet.hosts.get(name), fleet.glances.get(name)
    yield f"Host:          {name}"
    if agent:
        yield f"State:         {agent.state}"
        yield f"Version:       tapster {printable(agent.version)}"
        yield f"Labels:        {_pairs(agent.labels.items())}"
        yield f"Groups:        {', '.join((*agent.groups, 'all'))}"
        yield from _capability_lines(agent.capabilities)
        yield f"Boot:          {printable(agent.boot_id)}"
        yield f"Session:       {printable(agent.session)}"
    if clock := ahead(fleet, datetime.now(UTC)).get(name):
        yield f"Clock:         {clock.total_seconds():.0f} s ahead of this machine's, or this one's is behind"
    if glance:
        phases = ", ".join(f"{count} {phase}" for phase, count in sorted(glance.disks_by_phase.items()) if count)
        yield f"Last sync:     {glance.last_sync.isoformat(timespec='seconds') if glance.last_sync else '-'}"
        yield f"Disks:         {phases or 'none'}"
        yield from _condition_lines(glance.conditions)
    yield f"Guests:        {'none' if not fleet.guests else ''}".rstrip()
    for status in fleet.ordered():
        yield f"  {printable(status.guest)}: {status.phase}, generation {_or_dash(status.observed_generation)}"
        for disk in trouble(status):
            yield from (f"    {line}" for line in sentence(status, disk).splitlines())


def _capability_lines(capabilities: Capabilities) -> Lines:
    yield f"Backends:      {', '.join(capabilities.backends) or 'none'}"
    yield f"Formats:       {', '.join(capabilities.formats) or 'none'}"
    yield f"Servers:       {_pairs(capabilities.servers.items())}"
    yield f"Kernel:        {printable(capabilities.kernel)}"


async def _guest(name: str, wanted: Selection, settings: Settings) -> tuple[str, str | None]:
    async with operator(settings) as op:
        census = await take_census(op, wanted, [name])
    fleet = shown(census.fleet, wanted)
    parts = ["".join(f"{line}\n" for line in _guest_lines(census, status)) for status in fleet.ordered()]
    return "\n".join(parts), nothing(fleet, wanted, name, settings)


def _guest_lines(census: Census, status: GuestStatus) -> Lines:
    yield f"Guest:         {printable(status.guest)}"
    yield f"Host:          {status.host} ({_state(census.fleet, status.host)})"
    yield f"Phase:         {status.phase}"
    yield f"Document:      {_document(census, status)}"
    yield f"Observed:      generation {_or_dash(status.observed_generation)}, sha256 {_or_dash(status.sha256)}"
    yield from _condition_lines(status.conditions)
    yield f"Disks:         {'none' if not status.disks else ''}".rstrip()
    for disk in status.disks:
        yield from (f"  {line}" for line in _disk_lines(status, disk))


def _document(census: Census, status: GuestStatus) -> str:
    """Which document counts for the guest, and whether the host has come to it."""
    document = census.in_force(status.host, status.guest)
    if document is None:
        return "none on the bus that the host would take"
    whose = "the host's own" if document.scope.kind == "host" else f"of group {document.scope.name}"
    behind = "" if document.sha256 == status.sha256 else "; the host does not show it yet"
    return f"{whose}, {document.state}, generation {_or_dash(document.generation)}{behind}"


def _disk_lines(status: GuestStatus, disk: DiskStatus) -> Lines:
    yield f"{printable(disk.target)}: {disk.phase} {lasting(disk.since)}"
    yield f"  Source:      {printable(disk.source or '-')}"
    for image in disk.backing:
        yield f"  On top of:   {printable(image.source)} ({image.format})"
    yield f"  Backend:     {printable(backend(disk))}"
    if tap := disk.effective and disk.effective.tap:
        yield f"  Server:      {tap.server}, process {_or_dash(tap.process_id)}{f' in {tap.unit}' if tap.unit else ''}"
    yield f"  Device:      {_or_dash(disk.device_path)}, {size(disk.size_bytes)}, {disk.device}{_modes(disk)}"
    yield f"  Stable path: {printable(disk.stable_path or '-')}"
    if disk.unhonoured:
        yield f"  Unhonoured:  {printable(', '.join(disk.unhonoured))}"
    if told := outage(status, disk):
        yield f"  Outage:      {told}"
    if disk.error:
        yield from (f"  {line}" for line in sentence(status, disk).splitlines())


def _modes(disk: DiskStatus) -> str:
    modes = {"read-only": disk.read_only, "direct I/O": disk.direct_io, "in use": disk.in_use}
    return "".join(f", {mode}" for mode, holds in modes.items() if holds)


def _condition_lines(conditions: tuple[Condition, ...]) -> Lines:
    yield "Conditions:"
    for one in conditions:
        yield f"  {one.type} {one.status} {lasting(one.last_transition_time)}: {one.reason}: {printable(one.message)}"


def _state(fleet: Fleet, host: str) -> str:
    return fleet.hosts[host].state if host in fleet.hosts else "its agent has said nothing about itself"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return printable(", ".join(f"{name}={text}" for name, text in sorted(pairs)) or "none")


def _or_dash(value: object) -> str:
    return "-" if value is None else printable(str(value))
