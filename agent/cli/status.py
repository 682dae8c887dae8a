"""`tapster status`: every disk of the fleet, and in a sentence what is wrong with those that are not up."""

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Literal

from agent.bus.operator import BusError, operator
from agent.bus.topics import TopicError
from agent.cli.tables import console, fleet_view
from agent.fleet.clocks import told
from agent.fleet.look import look, shown
from agent.fleet.targets import Selection
from agent.fleet.view import Fleet, well
from agent.fleet.words import names
from agent.settings import Settings


def run(*, wanted: Selection | None, guest: str | None, settings: Settings, output: Literal["table", "json"]) -> int:
    """Print what hosts say about their guests.

    Args:
        wanted: Only these hosts.
        guest: Only guests of this name.
        settings: Say which broker and which fleet.
        output: A table with sentences, or a list of guest statuses as JSON, to standard output alone.

    Returns:
        0 if every guest is as its document wants it and every host shown is online, else 1.
    """
    try:
        fleet, complete = asyncio.run(_look(wanted, guest, settings))
    except (BusError, TopicError) as error:
        return _say(str(error))
    fleet = shown(fleet, wanted)
    if output == "json":
        statuses = [status.model_dump(mode="json") for status in fleet.ordered()]
        sys.stdout.write(json.dumps(statuses, indent=2) + "\n")
    else:
        console().print(fleet_view(fleet))
    if clocks := told(fleet, datetime.now(UTC)):
        _say(clocks)
    problems = [f"{topic} can't be read by this version: {why}" for topic, why in sorted(fleet.unreadable.items())]
    if not complete:
        problems.append("the broker kept back what says that all is there, so something may be missing")
    if lacking := nothing(fleet, wanted, guest, settings):
        problems.append(lacking)
    for problem in problems:
        _say(problem)
    return 0 if not problems and _all_well(fleet) else 1


async def _look(wanted: Selection | None, guest: str | None, settings: Settings) -> tuple[Fleet, bool]:
    async with operator(settings) as op:
        return await look(op, wanted, guest), op.complete


def nothing(fleet: Fleet, wanted: Selection | None, guest: str | None, settings: Settings) -> str | None:
    """What to say where something was asked for and is not there, if only one of the hosts that were named."""
    where = f"fleet {settings.fleet!r} at {settings.broker.host}:{settings.broker.port}"
    if strangers := _strangers(fleet, wanted) if wanted and wanted.hosts else []:
        who = f"host {strangers[0]} has" if len(strangers) == 1 else f"hosts {names(strangers)} have"
        return f"{who} never been in {where}; see `tapster get hosts`"
    if wanted and not fleet.hosts and not fleet.guests:
        return f"no host in {where} is meant by {wanted}; see `tapster get hosts -o wide` for their labels"
    if guest is not None and not fleet.guests:
        return f"no host in {where} has a guest {guest!r}; push its definition with `tapster push`"
    if not fleet.hosts and not fleet.guests:
        return f"no host has ever been in {where}; start an agent with `tapster run`"
    return None


def _strangers(fleet: Fleet, wanted: Selection) -> list[str]:
    seen = fleet.hosts.keys() | {host for host, _ in fleet.guests}
    return [repr(host) for host in wanted.hosts if host not in seen]


def _all_well(fleet: Fleet) -> bool:
    shown = {host for host, _ in fleet.guests} or fleet.hosts.keys()
    online = all(host in fleet.hosts and fleet.hosts[host].state == "online" for host in shown)
    return online and all(well(status) for status in fleet.guests.values())


def _say(sentence: str) -> int:
    sys.stderr.write(f"tapster status: {sentence}\n")
    return 1
