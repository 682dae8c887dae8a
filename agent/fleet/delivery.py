"""A document on its way to a host, and what became of it as the host's status tells. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agent.bus.message import Message
from agent.bus.topics import DesiredTopic, FleetTopics, Scope
from agent.definition import DocumentRejected, Limits
from agent.document import DesiredDocument, digest, read_document
from agent.fleet.view import Fleet, rejection, trouble, turned_away
from agent.fleet.words import sentences
from agent.status import AT_REST, GuestStatus, Phase
from agent.trust.policy import Unchecked
from agent.trust.seal import Seal
from reconcilers.reason import Reason

Outcome = Literal["published", "done", "overridden", "rejected", "overtaken", "failed", "timeout"]

WELL: frozenset[Outcome] = frozenset({"published", "done", "overridden"})
"""Outcomes with which there is nothing to do."""


@dataclass(slots=True)
class Delivery:
    """One document and one host that is to do what it says.

    Attributes:
        host: The host; None for a group's document while no host follows the group.
        guest: The guest.
        xml: Its domain XML; None takes the guest's disks down.
        group: The group whose standing document it is; None for the host's own.
        generation: Its count of versions.
        payload: What is published.
        outcome: What became of it; `published` until more is known.
        message: Why, where there is something to say.
    """

    host: str | None
    guest: str
    xml: str | None
    group: str | None = None
    generation: int = 0
    payload: bytes = b""
    outcome: Outcome = "published"
    message: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing more is waited for."""
        return self.outcome not in {"published", "timeout"}

    @property
    def sha256(self) -> str:
        """The digest by which a host's status names the document."""
        return digest(self.payload)

    @property
    def place(self) -> str:
        """Whom it is for, in a word or two."""
        if self.group is None:
            return self.host or "-"
        return f"group {self.group}" if self.host is None else f"{self.host} (group {self.group})"

    def topic(self, topics: FleetTopics) -> str:
        """Where it is published."""
        if self.group is not None:
            return topics.group_desired(self.group, self.guest)
        return topics.of(self.host or "").desired(self.guest)

    def number(self, generation: int, seal: Seal | None = None) -> None:
        """Give the document its generation and, if it shall be signed, its seal, which completes it."""
        self.generation = generation
        document = compose(self.guest, generation, self.xml)
        if seal is None:
            self.payload = json.dumps(document, ensure_ascii=False).encode()
        else:
            scope = Scope("host", self.host or "") if self.group is None else Scope("group", self.group)
            self.payload = seal.close(document, scope)

    def settle(self, outcome: Outcome, message: str = "") -> None:
        """Note what became of it."""
        self.outcome, self.message = outcome, message

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        group = {} if self.group is None else {"group": self.group}
        return {
            "host": self.host,
            **group,
            "guest": self.guest,
            "generation": self.generation,
            "sha256": self.sha256,
            "outcome": self.outcome,
            "message": self.message,
        }


def compose(guest: str, generation: int, xml: str | None) -> dict[str, Any]:
    """A desired document in its JSON form; without XML it takes the guest's disks down."""
    document: dict[str, Any] = {
        "guest": guest,
        "generation": generation,
        "state": "absent" if xml is None else "present",
    }
    if xml is not None:
        document["domain_xml"] = xml
    return document


def read_back(message: Message | None, topics: FleetTopics) -> DesiredDocument | None:
    """The document that is retained on a topic; None where there is none that a host would take.

    Signatures are taken as they are: the host judges them, by keys that an operator need not have.
    """
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
        )
    except DocumentRejected:  # by hosts as well, so what it says counts for nothing
        return None


def known_generation(document: DesiredDocument | None, statuses: Sequence[GuestStatus | None]) -> int:
    """The highest generation that the bus knows of: the retained document's, or one that a host observed."""
    observed = [status.observed_generation or 0 for status in statuses if status]
    return max([document.generation or 0 if document else 0, *observed])


def verdict(delivery: Delivery, status: GuestStatus | None, *, heard: bool, settled: bool) -> None:
    """Find the outcome in a guest's status, if it is there.

    Args:
        delivery: The document; its outcome is set.
        status: What its host says about the guest.
        heard: Whether the host said anything about the guest since the document was published.
        settled: Whether that was so long ago that what it says now is about this document.
    """
    if delivery.over:
        return
    if status is None:
        if heard and delivery.xml is None:
            delivery.settle("done")
    elif status.sha256 == delivery.sha256:
        _judge_disks(delivery, status)
    elif (observed := status.observed_generation or 0) > delivery.generation:
        delivery.settle(
            "overtaken", f"somebody pushed generation {observed} since; see what it wants before you push again"
        )
    elif settled and (no := turned_away(status)):
        conflict = no.reason is Reason.GENERATION_CONFLICT
        delivery.settle("overtaken" if conflict else "rejected", f"{no.reason}: {no.message}")


def standing(delivery: Delivery, fleet: Fleet) -> str:
    """What the host says when time is up."""
    host = delivery.host or ""
    agent = fleet.hosts.get(host)
    if agent is None or agent.state != "online":
        state = agent.state if agent else "unknown"
        return f"host {host!r} is {state}; start its agent with `tapster run`, the document waits for it on the bus"
    status = fleet.guests.get((host, delivery.guest))
    if status is None or status.sha256 != delivery.sha256:
        why = rejection(status) if status else None
        return why or "the host has not taken the document in yet; see `tapster status` and the agent's log"
    return sentences(status, trouble(status))


def _judge_disks(delivery: Delivery, status: GuestStatus) -> None:
    wanted = {Phase.DOWN} if delivery.xml is None else AT_REST
    missing = [disk for disk in status.disks if disk.phase not in wanted]
    if not missing:
        delivery.settle("done")
    elif not any(disk.error is None or disk.error.reason.transient for disk in missing):
        delivery.settle("failed", sentences(status, missing))
