"""`tapster resync`: have agents look anew at all that their hosts have, now and not at their next full look."""

import asyncio
import json
import sys

from pydantic import BaseModel, ValidationError

from agent.bus.operator import BusError, operator
from agent.bus.topics import TopicError
from agent.fleet.census import take_census
from agent.fleet.targets import Selection, Target, TargetError, check_names, known, resolve, silence, why_silent
from agent.fleet.words import counted, printable
from agent.settings import Settings

STARTED = "looks anew"


class _Answer(BaseModel):
    error: str | None = None


def run(wanted: Selection, *, seconds: float, settings: Settings, output: str) -> int:
    """Print each answer as it comes, and then what it comes to.

    Args:
        wanted: Whom to ask.
        seconds: How long to wait for answers; an agent gives it when it has found all that is its own.
        settings: Say which broker and which fleet.
        output: `json` is a list of all hosts with what is wrong, or null; else lines.

    Returns:
        0, or 1 if a host could not be looked over or did not answer.
    """
    try:
        answers, targets = asyncio.run(_ask(wanted, seconds, settings, as_lines=output == "table"))
    except (BusError, TargetError, TopicError) as error:
        sys.stderr.write(f"tapster resync: {error}\n")
        return 1
    silent = [target.host for target in targets if target.host not in answers]
    if output == "json":
        told = answers | {target.host: why_silent(target.state) for target in targets if target.host in silent}
        sys.stdout.write(json.dumps([{"host": host, "error": why} for host, why in told.items()], indent=2) + "\n")
    elif len(targets) > 1:
        well = sum(why is None for why in answers.values())
        sys.stdout.write(f"{well} of {counted(len(targets), 'host')} look anew\n")
    sys.stderr.writelines(f"tapster resync: {line}\n" for line in silence(silent, targets))
    return 1 if silent or any(answers.values()) else 0


async def _ask(
    wanted: Selection, seconds: float, settings: Settings, *, as_lines: bool
) -> tuple[dict[str, str | None], list[Target]]:
    answers = dict[str, str | None]()
    async with operator(settings) as bus:
        check_names(wanted, bus.topics)
        census = await take_census(bus, wanted, ())
        targets = known(resolve(wanted, census.fleet.hosts, settings.fleet), settings.fleet)
        online = [target.host for target in targets if target.online]
        async for host, reply in bus.ask(online, "resync", seconds=seconds):
            answers[host] = _error(reply)
            if as_lines:
                sys.stdout.write(f"{host}: {printable(answers[host] or STARTED)}\n")
                sys.stdout.flush()
    return answers, targets


def _error(reply: bytes) -> str | None:
    try:
        return _Answer.model_validate_json(reply).error
    except ValidationError:
        return f"an answer that this version can't read: {reply[:200].decode('utf-8', 'replace')}"
