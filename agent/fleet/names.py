"""The names that a fleet knows, for a person who has pressed the tab key and waits.

So there is a short limit to it all, what has arrived until then counts, and where there is no broker there is nothing,
without a word: a shell would write it into the line that is being typed.
"""

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from agent.bus.message import Message
from agent.bus.operator import BusError, operator
from agent.bus.topics import NAME, AgentTopic, DesiredTopic, FleetTopics, RolloutTopic, Topic, TopicError
from agent.settings import SettingsError, load
from reconcilers.spec import GUEST_NAME

Kind = Literal["host", "group", "guest", "rollout"]

BUS_SECONDS = 1.0
"""How long the bus may take."""

ALL_SECONDS = 3.0
"""After this the process ends: a name server that does not answer would have a thread keep it."""


def names_on_bus(kind: Kind, *, config: Path | None, hosts: Sequence[str]) -> dict[str, str]:
    """Names of one kind, sorted, each with a word about it or none. To be called as `labels_on_bus`.

    Args:
        kind: Of what.
        config: The settings file; None for the usual one.
        hosts: Only guests of these hosts, and of groups.

    Returns:
        For a rollout its phase, for others an empty text.
    """
    found = dict[str, str]()
    _listen(
        config,
        lambda topics: _filters(kind, topics, hosts),
        lambda message, topic: found.update(_names(kind, message, topic)),
    )
    return dict(sorted(found.items()))


def labels_on_bus(*, config: Path | None) -> list[dict[str, str]]:
    """The labels of every host. To be called by a process that does nothing else: it may be ended.

    Args:
        config: The settings file; None for the usual one.
    """
    found = list[dict[str, str]]()

    def take(message: Message, _topic: Topic) -> None:
        labels = json.loads(message.payload)["labels"]
        found.append({name: text for name, text in labels.items() if isinstance(text, str)})

    _listen(config, lambda topics: [topics.every_agent], take)
    return found


def _listen(
    config: Path | None, filters: Callable[[FleetTopics], list[str]], take: Callable[[Message, Topic], None]
) -> None:
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, ALL_SECONDS)
    with suppress(BusError, TopicError, SettingsError, TimeoutError):
        asyncio.run(_gather(config, filters, take))


async def _gather(
    config: Path | None, filters: Callable[[FleetTopics], list[str]], take: Callable[[Message, Topic], None]
) -> None:
    settings = load(config)
    patience = settings.broker.model_copy(update={"connect_timeout": BUS_SECONDS})
    async with asyncio.timeout(BUS_SECONDS), operator(settings.model_copy(update={"broker": patience})) as op:
        async for message in op.arriving(*filters(op.topics)):
            with suppress(ValueError, AttributeError, TypeError, KeyError):  # what anybody may have published there
                take(message, op.topics.parse(message.topic))


def _filters(kind: Kind, topics: FleetTopics, hosts: Sequence[str]) -> list[str]:
    match kind:
        case "host":
            return [topics.every_agent]
        case "group":
            return [topics.every_agent, topics.every_group_desired]
        case "guest":
            of_hosts = [topics.of(host).desired_filter for host in hosts] or [topics.every_desired]
            return [*of_hosts, topics.every_group_desired]
        case "rollout":
            return [topics.rollout("+", "state")]


def _names(kind: Kind, message: Message, topic: Topic) -> Iterator[tuple[str, str]]:
    """The names in a message that are well-formed, with a word about each: a shell reads them."""
    match kind, topic:
        case "host", AgentTopic(host):
            yield host, ""
        case "group", AgentTopic():
            yield from ((group, "") for group in json.loads(message.payload).get("groups", ()) if NAME.fullmatch(group))
        case "group", DesiredTopic(scope):
            yield scope.name, ""
        case "guest", DesiredTopic(guest=guest) if GUEST_NAME.fullmatch(guest):
            yield guest, ""
        case "rollout", RolloutTopic(rollout) if NAME.fullmatch(phase := json.loads(message.payload)["phase"]):
            yield rollout, phase
