"""`tapster events -f`: what happens on hosts, as it happens."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import ValidationError

from agent.bus.operator import Operator, operator
from agent.bus.topics import EventTopic
from agent.cli.ending import until_enough
from agent.cli.status import nothing
from agent.events import CloudEvent
from agent.fleet.look import shown
from agent.fleet.targets import Selection, is_meant
from agent.fleet.view import Fleet
from agent.fleet.words import printable
from agent.settings import Settings


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are shown; what is None or empty lets all pass.

    Attributes:
        wanted: On which hosts.
        guest: About which guest.
        types: Of which types, without `tapster.`; `*` stands for anything.
        phases: Only changes into one of these phases, in lower case; `*` as above.
    """

    wanted: Selection | None = None
    guest: str | None = None
    types: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()

    def passes(self, event: CloudEvent, host: str, fleet: Fleet) -> bool:
        """Whether an event is shown."""
        agent = fleet.hosts.get(host)
        wanted = self.wanted
        return (
            (wanted is None or host in wanted.hosts or (agent is not None and is_meant(wanted, agent)))
            and (self.guest is None or event.data.get("guest") == self.guest)
            and _is_one_of(event.type.removeprefix("tapster."), self.types)
            and _is_one_of(str(event.data.get("phase")).lower(), self.phases)
        )


def _is_one_of(word: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(word, pattern) for pattern in patterns)


def run(only: Filter, *, most: int | None, settings: Settings, output: str) -> int:
    """Print events until Ctrl-C, or until there were enough.

    Args:
        only: Which ones.
        most: How many at most.
        settings: Say which broker and which fleet.
        output: `json` is one CloudEvent a line, as it came; else a line for people.

    Returns:
        0, or 1 if the bus can't be used.
    """
    return until_enough("events", _follow(only, most, settings, output))


async def _follow(only: Filter, most: int | None, settings: Settings, output: str) -> None:
    async with operator(settings) as op:
        fleet = await _births(op, only.wanted)
        if lacking := nothing(shown(fleet, only.wanted), only.wanted, None, settings):
            sys.stderr.write(f"tapster events: {lacking}; what comes is shown\n")
        printed = 0
        while most is None or printed < most:
            message = await op.message()
            if message is None:
                continue
            topic = op.topics.parse(message.topic)
            if not isinstance(topic, EventTopic):
                fleet.take(message)
                continue
            try:
                event = CloudEvent.model_validate_json(message.payload)
            except ValidationError as error:
                sys.stderr.write(f"tapster events: {message.topic}: no event: {error.errors()[0]['msg']}\n")
                continue
            if only.passes(event, topic.host, fleet):
                line = message.payload.decode() if output == "json" else _line(topic.host, event)
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
                printed += 1


async def _births(op: Operator, wanted: Selection | None) -> Fleet:
    """The hosts, and the subscription to their events, which stands when this returns."""
    filters: Iterable[str] = [op.topics.every_event]
    if wanted and wanted.hosts:
        filters = [op.topics.of(host).event_filter for host in wanted.hosts]
    fleet = Fleet(op.topics)
    for message in await op.retained(op.topics.every_agent, *filters):
        fleet.take(message)
    return fleet


def _line(host: str, event: CloudEvent) -> str:
    at = event.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return printable(f"{at} {host} {event.type.removeprefix('tapster.')} {event.subject}: {_words(event)}")


def _words(event: CloudEvent) -> str:
    """What happened: the phases and the reason where it is a change of phase, else the message."""
    data = event.data
    if "phase" not in data:
        reason = f"{data['reason']}: " if data.get("reason") else ""
        return f"{reason}{data.get('message', '')}"
    duration = data.get("duration_s")
    took = f", {duration:.3f} s after its cause" if isinstance(duration, float) else ""
    why = f"{data.get('reason')}: {data.get('message')} [{data.get('cause')}{took}]"
    return f"{data.get('previous') or 'new'} → {data['phase']}, {why}"
