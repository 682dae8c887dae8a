"""`tapster diff`: how definitions in files differ from what hosts are told now."""

import asyncio
import difflib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lxml import etree

from agent.bus.operator import BusError, operator
from agent.bus.topics import TopicError
from agent.cli.push_files import read_definitions
from agent.fleet.census import Census, take_census
from agent.fleet.delivery import Delivery
from agent.fleet.order import Order, RefusedError, address
from agent.fleet.targets import TargetError, check_names
from agent.fleet.words import names, printable
from agent.settings import Settings

SAME, DIFFERS, ERROR = 0, 1, 2
"""Exit codes, as diff(1) has them."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What would change in one document. `lines` is a unified diff, empty where nothing would."""

    place: str
    guest: str
    lines: tuple[str, ...]


def run(files: Sequence[Path], order: Order, *, settings: Settings, output: str) -> int:
    """Print the differences; what is the same for several hosts is printed once.

    Args:
        files: Definitions; `-` is standard input.
        order: For whom they would be pushed, and whether they are templates.
        settings: Say which broker and which fleet.
        output: `json` is a list of objects with `host`, `guest` and `diff`; else unified diffs.

    Returns:
        0 if a push would change no document, 1 if it would, 2 if that can't be told.
    """
    try:
        differences = asyncio.run(_compare(files, order, settings))
    except (RefusedError, BusError, TopicError, TargetError) as error:
        sys.stderr.write(f"tapster diff: {error}\n")
        return ERROR
    if output == "json":
        sys.stdout.write(json.dumps([_as_json(one) for one in differences], indent=2) + "\n")
    else:
        _print(differences)
    return DIFFERS if any(one.lines for one in differences) else SAME


async def _compare(files: Sequence[Path], order: Order, settings: Settings) -> list[Difference]:
    definitions = read_definitions(files, settings)
    async with operator(settings) as op:
        check_names(order.wanted, op.topics)
        census = await take_census(op, order.wanted, [definition.guest for definition in definitions])
    return [
        _difference(delivery, census) for delivery in _documents(address(definitions, census, order, settings.fleet))
    ]


def _documents(deliveries: Sequence[Delivery]) -> Iterator[Delivery]:
    """Each document once: a group's is the same for all its hosts."""
    seen: set[tuple[str, str]] = set()
    for delivery in deliveries:
        if delivery.group is None:
            yield delivery
        elif (key := (delivery.group, delivery.guest)) not in seen:
            seen.add(key)
            yield Delivery(None, delivery.guest, delivery.xml, delivery.group)


def _difference(delivery: Delivery, census: Census) -> Difference:
    guest = delivery.guest
    if delivery.group is not None:
        now = census.of_group(delivery.group, guest)
    else:
        now = census.in_force(delivery.host or "", guest)
    generation = f"generation {now.generation}, {now.state}" if now else "not there"
    before = _laid_out(now.body.decode()) if now and now.state == "present" else []
    after = _laid_out(delivery.xml or "")
    lines = difflib.unified_diff(before, after, f"{guest} ({generation})", f"{guest} (as in the file)", lineterm="")
    return Difference(delivery.place, guest, tuple(lines))


def _laid_out(xml: str) -> list[str]:
    """A definition's lines, laid out the same way whoever wrote it, so that only what it says makes a difference."""
    try:
        root = etree.fromstring(xml.encode(), etree.XMLParser(remove_blank_text=True, resolve_entities=False))
    except etree.XMLSyntaxError:
        return xml.splitlines()
    etree.indent(root)
    return etree.tostring(root, encoding="unicode").splitlines()


def _as_json(one: Difference) -> dict[str, Any]:
    return {"host": one.place, "guest": one.guest, "differs": bool(one.lines), "diff": "\n".join(one.lines)}


def _print(differences: Sequence[Difference]) -> None:
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for one in differences:
        if one.lines:
            alike[one.lines].append(one.place)
    for lines, places in alike.items():
        sys.stdout.write(f"{len(places)} hosts: {names(places)}\n" if len(places) > 1 else f"{places[0]}\n")
        sys.stdout.writelines(f"{printable(line)}\n" for line in lines)
    same = sum(not one.lines for one in differences)
    sys.stderr.write(f"{len(differences) - same} of {len(differences)} documents would change\n")
