"""`tapster push`: publish what guests of one host should be, and wait until it is so."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent.bus.fleet import Fleet, rejection, trouble
from agent.bus.message import Message
from agent.bus.operator import BusError, Operator, operator
from agent.bus.topics import DesiredTopic, FleetTopics, TopicError
from agent.cli.push_files import Definition, RefusedError, read_definitions
from agent.cli.tables import sentence
from agent.definition import DocumentRejected, Limits
from agent.document import digest, read_document
from agent.settings import Settings
from agent.status import AT_REST, DiskStatus, GuestStatus, Phase
from agent.trust.policy import Unchecked

VERDICT_SECONDS = 1.0
"""A rejection that stands in the status may be an older one; after this long without a better word it is ours."""


@dataclass(slots=True)
class Push:
    """One document on its way.

    Attributes:
        host: Whose it is.
        guest: The guest.
        xml: Its domain XML; None takes the guest's disks down.
        generation: Its count of versions.
        payload: What is published.
        outcome: What became of it; `published` until more is known.
        message: Why, where there is something to say.
    """

    host: str
    guest: str
    xml: str | None
    generation: int = 0
    payload: bytes = b""
    outcome: Literal["published", "done", "rejected", "overtaken", "failed", "timeout"] = "published"
    message: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more is waited for."""
        return self.outcome not in {"published", "timeout"}

    def number(self, generation: int) -> None:
        """Give the document its generation, which completes it."""
        self.generation = generation
        document: dict[str, Any] = {
            "guest": self.guest,
            "generation": generation,
            "state": "absent" if self.xml is None else "present",
        }
        if self.xml is not None:
            document["domain_xml"] = self.xml
        self.payload = json.dumps(document, ensure_ascii=False).encode()

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "host": self.host,
            "guest": self.guest,
            "generation": self.generation,
            "sha256": digest(self.payload),
            "outcome": self.outcome,
            "message": self.message,
        }


def run(
    files: Sequence[Path],
    *,
    host: str,
    absent_guest: str | None,
    generation: int | None,
    wait: bool,
    timeout: float,
    settings: Settings,
    output: Literal["table", "json"],
) -> int:
    """Publish documents for one host.

    Args:
        files: Guest definitions; `-` is standard input.
        host: The host.
        absent_guest: Take this guest's disks down, instead of `files`.
        generation: Of every document; None counts on from what the bus knows of each guest.
        wait: Until the host has done what the documents want, or says that it can't.
        timeout: Seconds to wait at most.
        settings: Say which broker and which fleet.
        output: Sentences, or a list of documents with their outcomes as JSON, to standard output alone.

    Returns:
        0 if all is published and, with `wait`, done; 1 if anything was refused, failed or is not done yet.
    """
    try:
        definitions = [Definition(absent_guest, None)] if absent_guest else read_definitions(files, settings)
        pushes = [Push(host, definition.guest, definition.xml) for definition in definitions]
        asyncio.run(_push(pushes, generation, timeout if wait else None, settings))
    except (RefusedError, BusError, TopicError) as error:
        return _say(str(error))
    if output == "json":
        sys.stdout.write(json.dumps([push.as_json() for push in pushes], indent=2) + "\n")
    else:
        _print(pushes)
    return 0 if all(push.outcome in {"published", "done"} for push in pushes) else 1


async def _push(pushes: list[Push], generation: int | None, seconds: float | None, settings: Settings) -> None:
    async with operator(settings) as op:
        host = pushes[0].host
        topics = op.topics.of(host)
        fleet, documents = Fleet(op.topics), dict[str, Message]()
        for message in await op.retained(topics.agent, topics.status_filter, topics.desired_filter):
            fleet.take(message)
            documents[message.topic] = message
        state = fleet.hosts[host].state if host in fleet.hosts else "unknown to the fleet"
        if state != "online":
            _say(f"host {host!r} is {state}; its documents wait for it on the bus")
        for push in pushes:
            document = documents.get(topics.desired(push.guest))
            known = _known_generation(document, fleet.guests.get((host, push.guest)), op.topics)
            if generation is not None and generation < known:
                raise RefusedError(
                    f"guest {push.guest!r}: generation {generation} is below {known}, which is known already, so hosts "
                    "would ignore it; nothing was pushed; say a higher one, or leave out --generation"
                )
            push.number(known + 1 if generation is None else generation)
            _check_size(push, settings.limits.document_bytes)
        for push in pushes:
            await op.publish(topics.desired(push.guest), push.payload)
        if seconds is not None:
            await _wait(op, fleet, pushes, seconds)


def _known_generation(document: Message | None, status: GuestStatus | None, topics: FleetTopics) -> int:
    """The highest generation that the bus knows of: the retained document's, or the one that the host observed."""
    observed = status.observed_generation if status else None
    return max(observed or 0, _declared_generation(document, topics) or 0)


def _declared_generation(message: Message | None, topics: FleetTopics) -> int | None:
    topic = topics.parse(message.topic) if message else None
    if message is None or not isinstance(topic, DesiredTopic):
        return None
    try:
        return read_document(
            message.payload,
            scope=topic.scope,
            guest=topic.guest,
            properties=message.properties,
            limits=Limits(max_bytes=len(message.payload)),
            opener=Unchecked(topics.fleet),
        ).generation
    except DocumentRejected:  # by hosts as well, so what it says counts for nothing
        return None


def _check_size(push: Push, limit: int) -> None:
    if len(push.payload) > limit:
        raise RefusedError(
            f"guest {push.guest!r}: the document has {len(push.payload)} bytes and hosts take {limit} "
            "(limits.document_bytes); nothing was pushed"
        )


async def _wait(op: Operator, fleet: Fleet, pushes: list[Push], seconds: float) -> None:
    """Follow the status until every document has its outcome, or time is up."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    judges = [_Judge(push, op.topics.of(push.host).status(push.guest)) for push in pushes]
    while (left := deadline - loop.time()) > 0 and any(not push.over for push in pushes):
        _show_progress(pushes, fleet)
        message = await op.message(min(left, VERDICT_SECONDS / 4))
        if message is not None:
            fleet.take(message)
        for judge in judges:
            judge.look(fleet, message, loop.time())
    _clear_progress()
    for push in pushes:
        if not push.over:
            push.outcome, push.message = "timeout", _standing(fleet, push)


@dataclass(slots=True)
class _Judge:
    """Finds a document's outcome in what its host says.

    Attributes:
        push: The document.
        topic: Where the guest's status stands.
        heard: When the host first said anything about the guest after the push.
    """

    push: Push
    topic: str
    heard: float | None = None

    def look(self, fleet: Fleet, message: Message | None, at: float) -> None:
        """Look at the fleet after a message, or after none for a while."""
        push = self.push
        if self.heard is None and message is not None and message.topic == self.topic:
            self.heard = at
        status = fleet.guests.get((push.host, push.guest))
        if push.over:
            return
        if status is None:
            if self.heard is not None and push.xml is None:
                push.outcome = "done"
        elif status.sha256 == digest(push.payload):
            self._judge_disks(status)
        elif (observed := status.observed_generation or 0) > push.generation:
            push.outcome = "overtaken"
            push.message = f"somebody pushed generation {observed} since; see what it wants before you push again"
        elif self.heard is not None and at - self.heard > VERDICT_SECONDS and (why := rejection(status)):
            push.outcome, push.message = "rejected", why

    def _judge_disks(self, status: GuestStatus) -> None:
        wanted = {Phase.DOWN} if self.push.xml is None else AT_REST
        missing = [disk for disk in status.disks if disk.phase not in wanted]
        if not missing:
            self.push.outcome = "done"
        elif not any(disk.error is None or disk.error.reason.transient for disk in missing):
            self.push.outcome = "failed"
            self.push.message = _sentences(status, missing)


def _standing(fleet: Fleet, push: Push) -> str:
    """What the host says when time is up."""
    agent = fleet.hosts.get(push.host)
    if agent is None or agent.state != "online":
        return f"host {push.host!r} is {agent.state if agent else 'unknown'}; start its agent with `tapster run`"
    status = fleet.guests.get((push.host, push.guest))
    if status is None or status.sha256 != digest(push.payload):
        why = rejection(status) if status else None
        return why or "the host has not taken the document in yet; see `tapster status` and the agent's log"
    return _sentences(status, trouble(status))


def _sentences(status: GuestStatus, disks: Sequence[DiskStatus]) -> str:
    return "\n".join(["", *(sentence(status, disk) for disk in disks)])


def _show_progress(pushes: list[Push], fleet: Fleet) -> None:
    """One line that is written over, for a person only."""
    if not sys.stderr.isatty():
        return
    statuses = [fleet.guests[push.host, push.guest] for push in pushes if (push.host, push.guest) in fleet.guests]
    disks = [disk for status in statuses for disk in status.disks]
    resting = sum(disk.phase in AT_REST for disk in disks)
    over = sum(push.over for push in pushes)
    sys.stderr.write(f"\r\x1b[K{over} of {len(pushes)} guests done, {resting} of {len(disks)} disks at rest")
    sys.stderr.flush()


def _clear_progress() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")


def _print(pushes: list[Push]) -> None:
    for push in pushes:
        what = "absent" if push.xml is None else "present"
        line = f"{push.host}: {push.guest} {what}, generation {push.generation}: {push.outcome}"
        if push.outcome in {"published", "done"}:
            sys.stdout.write(f"{line}\n")
        else:
            _say(f"{line}: {push.message}")


def _say(words: str) -> int:
    sys.stderr.write(f"tapster push: {words}\n")
    return 1
