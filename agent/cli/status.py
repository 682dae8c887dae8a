"""`tapster status`: every disk of the fleet, and in a sentence what is wrong with those that are not up."""

import asyncio
import json
import sys
from typing import Literal

from agent.bus.fleet import Fleet, well
from agent.bus.operator import BusError, Operator, operator
from agent.bus.topics import TopicError
from agent.cli.tables import console, fleet_view
from agent.settings import Settings


def run(*, host: str | None, guest: str | None, settings: Settings, output: Literal["table", "json"]) -> int:
    """Print what hosts say about their guests.

    Args:
        host: Only this host.
        guest: Only guests of this name.
        settings: Say which broker and which fleet.
        output: A table with sentences, or a list of guest statuses as JSON, to standard output alone.

    Returns:
        0 if every guest is as its document wants it and every host shown is online, else 1.
    """
    try:
        fleet, complete = asyncio.run(_look(host, guest, settings))
    except (BusError, TopicError) as error:
        return _say(str(error))
    if output == "json":
        statuses = [status.model_dump(mode="json") for status in fleet.ordered()]
        sys.stdout.write(json.dumps(statuses, indent=2) + "\n")
    else:
        console().print(fleet_view(fleet))
    problems = [f"{topic} can't be read by this version: {why}" for topic, why in sorted(fleet.unreadable.items())]
    if not complete:
        problems.append("the broker kept back what says that all is there, so something may be missing")
    if nothing := _nothing(fleet, host, guest, settings):
        problems.append(nothing)
    for problem in problems:
        _say(problem)
    return 0 if not problems and _all_well(fleet) else 1


async def look(op: Operator, host: str | None, guest: str | None) -> Fleet:
    """What is retained about hosts and guests; None stands for all. What changes later comes by `op.message`."""
    fleet = Fleet(op.topics)
    for message in await op.retained(*filters(op, host, guest)):
        fleet.take(message)
    return fleet


def filters(op: Operator, host: str | None, guest: str | None) -> tuple[str, str]:
    """Filters for the births and the guest statuses of one or all."""
    if host is None:
        return op.topics.every_agent, op.topics.every_status if guest is None else op.topics.status_anywhere(guest)
    topics = op.topics.of(host)
    return topics.agent, topics.status_filter if guest is None else topics.status(guest)


async def _look(host: str | None, guest: str | None, settings: Settings) -> tuple[Fleet, bool]:
    async with operator(settings) as op:
        return await look(op, host, guest), op.complete


def _nothing(fleet: Fleet, host: str | None, guest: str | None, settings: Settings) -> str | None:
    """What to say where something was asked for and is not there."""
    where = f"fleet {settings.fleet!r} at {settings.broker.host}:{settings.broker.port}"
    if host is not None and host not in fleet.hosts and not fleet.guests:
        return f"host {host!r} has never been in {where}; see `tapster status` for those that have"
    if guest is not None and not fleet.guests:
        return f"no host in {where} has a guest {guest!r}; push its definition with `tapster push`"
    if not fleet.hosts and not fleet.guests:
        return f"no host has ever been in {where}; start an agent with `tapster run`"
    return None


def _all_well(fleet: Fleet) -> bool:
    shown = {host for host, _ in fleet.guests} or fleet.hosts.keys()
    online = all(host in fleet.hosts and fleet.hosts[host].state == "online" for host in shown)
    return online and all(well(status) for status in fleet.guests.values())


def _say(sentence: str) -> int:
    sys.stderr.write(f"tapster status: {sentence}\n")
    return 1
