"""`tapster push` and `tapster absent`: publish what guests should be, and wait until it is so."""

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.bus.operator import BusError, operator
from agent.bus.topics import TopicError
from agent.cli.push_files import read_definitions, read_sealed_file, tell_of_braces
from agent.fleet.census import Census, take_census
from agent.fleet.delivery import WELL, Delivery
from agent.fleet.follow import by_outcome, follow
from agent.fleet.order import Definition, Order, RefusedError, address, has, number
from agent.fleet.targets import Selection, TargetError, check_names
from agent.fleet.words import counted, names
from agent.settings import Settings
from agent.status import AT_REST
from agent.trust.seal import Sealed

EACH_NAMED = 20
"""Documents up to which each that went well has a line of its own."""


def run(files: Sequence[Path], order: Order, *, settings: Settings, output: str) -> int:
    """Publish guest definitions.

    Args:
        files: The definitions; `-` is standard input.
        order: For whom, and how.
        settings: Say which broker and which fleet.
        output: `json` is a list of documents with their outcomes, to standard output alone; else sentences.

    Returns:
        0 if all is published and, where it was waited for, done; 1 if anything was refused, failed or is not done yet.
    """
    try:
        definitions = read_definitions(files, settings)
        _check_template(definitions, order)
        deliveries = asyncio.run(_push("push", definitions, order, settings))
    except (RefusedError, BusError, TopicError, TargetError) as error:
        return _say("push", str(error))
    return report("push", deliveries, output)


def take_down(
    guests: Sequence[str], order: Order, *, agreed: bool, settings: Settings, output: str, command: str = "absent"
) -> int:
    """Publish absent documents, which take guests' disks down; images are kept, and disks in use stay until let go.

    Args:
        guests: Their names.
        order: For whom. Where hosts are not named, only those that have the guest are meant.
        agreed: Whether to do it on several hosts without asking.
        settings: Say which broker and which fleet.
        output: As for `run`.
        command: Whose messages they are.

    Returns:
        As `run` does.
    """
    try:
        definitions = [Definition(guest, None) for guest in guests]
        deliveries = asyncio.run(_push(command, definitions, order, settings, agreed=agreed))
    except (RefusedError, BusError, TopicError, TargetError) as error:
        return _say(command, str(error))
    return report(command, deliveries, output)


def publish_sealed(files: Sequence[Path], seconds: float | None, *, settings: Settings, output: str) -> int:
    """Publish signed documents as they are, each where it was signed for.

    Args:
        files: Signed envelopes, as `tapster sign` writes them.
        seconds: How long to wait for the hosts to have done it; None does not wait.
        settings: Say which broker and which fleet.
        output: As for `run`.

    Returns:
        As `run` does.
    """
    try:
        sealed = [read_sealed_file(file, settings) for file in files]
        deliveries = asyncio.run(_push_sealed(sealed, seconds, settings))
    except (RefusedError, BusError, TopicError, TargetError) as error:
        return _say("push", str(error))
    return report("push", deliveries, output)


async def _push_sealed(sealed: Sequence[Sealed], seconds: float | None, settings: Settings) -> list[Delivery]:
    deliveries: list[Delivery] = []
    async with operator(settings) as op:
        for one in sealed:
            scope, guest = one.document.scope, one.document.guest
            xml = one.document.body.decode() if one.document.state == "present" else None
            group = scope.name if scope.kind == "group" else None
            order = Order(Selection(group=group) if group else Selection(hosts=(scope.name,)), one.document.generation)
            check_names(order.wanted, op.topics)
            census = await take_census(op, order.wanted, [guest])
            found = address([Definition(guest, xml)], census, order, settings.fleet)
            for delivery in found:
                number(delivery, found, census, order, settings.limits.document_bytes)
                delivery.payload = one.payload
            _tell_who_is_away("push", found, census)
            await op.publish(found[0].topic(op.topics), one.payload)
            if seconds is not None:
                with _progress(found, census) as progress:
                    await follow(op, census.fleet, found, seconds=seconds, progress=progress)
            deliveries += found
    return deliveries


def report(command: str, deliveries: Sequence[Delivery], output: str) -> int:
    """Say what became of documents; returns the exit code."""
    if output == "json":
        sys.stdout.write(json.dumps([delivery.as_json() for delivery in deliveries], indent=2) + "\n")
    else:
        _print(command, deliveries)
    return 0 if all(delivery.outcome in WELL for delivery in deliveries) else 1


async def _push(
    command: str, definitions: Sequence[Definition], order: Order, settings: Settings, *, agreed: bool = True
) -> list[Delivery]:
    async with operator(settings) as op:
        check_names(order.wanted, op.topics)
        guests = [definition.guest for definition in definitions]
        census = await take_census(op, order.wanted, guests)
        deliveries = address(definitions, census, order, settings.fleet)
        for delivery in deliveries:
            number(delivery, deliveries, census, order, settings.limits.document_bytes)
        if not agreed:
            _agree(deliveries)
        _tell_who_has_no_such_guest(command, deliveries, census)
        _tell_who_is_away(command, deliveries, census)
        await op.publish_all({delivery.topic(op.topics): delivery.payload for delivery in deliveries}.items())
        if order.seconds is not None:
            with _progress(deliveries, census) as progress:
                await follow(op, census.fleet, deliveries, seconds=order.seconds, progress=progress)
        return deliveries


def _check_template(definitions: Sequence[Definition], order: Order) -> None:
    if order.template and order.wanted.group is not None:
        raise RefusedError(
            "a group has one standing document for all its hosts, those of tomorrow too, so nothing can be filled "
            "in for each; push to hosts with -l or --all instead, or without --template"
        )
    if not order.template:
        tell_of_braces("push", definitions)


def _agree(deliveries: Sequence[Delivery]) -> None:
    """Ask before disks of several hosts are taken down."""
    hosts = sorted({delivery.host for delivery in deliveries if delivery.host})
    if len(hosts) <= 1:
        return
    guests = names(sorted({delivery.guest for delivery in deliveries}))
    sys.stderr.write(f"take the disks of {guests} down on {counted(len(hosts), 'host')} ({names(hosts)})? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise RefusedError("nothing was published; agree, or say --yes")


def _tell_who_has_no_such_guest(command: str, deliveries: Sequence[Delivery], census: Census) -> None:
    """Where hosts are named, the name of a guest that is to be taken down there may be mistyped."""
    without = defaultdict[str, list[str]](list)
    for delivery in deliveries:
        host, guest = delivery.host, delivery.guest
        if delivery.xml is None and host in census.fleet.hosts and not has(census, host, guest):
            without[guest].append(repr(host))
    for guest, hosts in without.items():
        why = f"nothing on the bus says that {names(hosts)} has guest {guest!r}"
        _say(command, f"{why}; if its name is another, `tapster get guests` shows it")


def _tell_who_is_away(command: str, deliveries: Sequence[Delivery], census: Census) -> None:
    hosts = {delivery.host: census.fleet.hosts.get(delivery.host) for delivery in deliveries if delivery.host}
    away: dict[str, list[str]] = {}
    for host, agent in hosts.items():
        if agent is None or agent.state != "online":
            away.setdefault(agent.state if agent else "unknown to the fleet", []).append(repr(host))
    for state, there in sorted(away.items()):
        of = "s" if len(there) > 1 else ""
        _say(command, f"host{of} {names(there)} {'are' if of else 'is'} {state}; documents wait there on the bus")
    for delivery in deliveries:
        if delivery.host is None:
            _say(command, f"no host follows group {delivery.group!r} yet; the document waits for those that will")


@contextmanager
def _progress(deliveries: Sequence[Delivery], census: Census) -> Iterator[Callable[[], None]]:
    """What shows, each time it is called, one line that is written over; for a person only."""
    if not sys.stderr.isatty():
        yield lambda: None
        return

    def show() -> None:
        guests = census.fleet.guests
        statuses = [guests.get((one.host or "", one.guest)) for one in deliveries]
        disks = [disk for status in statuses if status for disk in status.disks]
        resting = sum(disk.phase in AT_REST for disk in disks)
        over = sum(delivery.over for delivery in deliveries)
        guests_done = f"{over} of {counted(len(deliveries), 'guest')} done"
        sys.stderr.write(f"\r\x1b[K{guests_done}, {resting} of {len(disks)} disks at rest")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")


def _print(command: str, deliveries: Sequence[Delivery]) -> None:
    few = len(deliveries) <= EACH_NAMED
    for delivery in deliveries:
        what = "absent" if delivery.xml is None else "present"
        line = f"{delivery.place}: {delivery.guest} {what}, generation {delivery.generation}: {delivery.outcome}"
        if delivery.outcome not in WELL:
            _say(command, f"{line}: {delivery.message}")
        elif few:
            sys.stdout.write(f"{line}{f': {delivery.message}' if delivery.message else ''}\n")
    if not few:
        counts = [f"{len(those)} {outcome}" for outcome, those in by_outcome(deliveries).items()]
        sys.stdout.write(f"{counted(len(deliveries), 'document')}: {', '.join(counts)}\n")


def _say(command: str, words: str) -> int:
    sys.stderr.write(f"tapster {command}: {words}\n")
    return 1
