"""What the bus retains about some guests on some hosts: who is there, what they are told and what they say."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agent.bus.message import Message
from agent.bus.operator import Operator
from agent.bus.topics import EVERY_HOST, FleetTopics
from agent.document import DesiredDocument
from agent.fleet.delivery import known_generation, read_back
from agent.fleet.targets import Selection
from agent.fleet.view import Fleet


@dataclass(slots=True)
class Census:
    """Hosts, statuses and desired documents.

    Attributes:
        fleet: Hosts and statuses.
        messages: What is retained on desired topics, by topic.
    """

    fleet: Fleet
    messages: dict[str, Message] = field(default_factory=dict)

    @property
    def topics(self) -> FleetTopics:
        """The fleet's topics."""
        return self.fleet.topics

    def take(self, message: Message) -> None:
        """Take a message in; the last one on a topic counts, and an empty one takes away."""
        self.fleet.take(message)
        if "/desired/" in message.topic:
            self.messages.pop(message.topic, None)
            if message.payload:
                self.messages[message.topic] = message

    def own_message(self, host: str, guest: str) -> Message | None:
        """What is retained for one host itself."""
        return self.messages.get(self.topics.of(host).desired(guest))

    def own(self, host: str, guest: str) -> DesiredDocument | None:
        """The document for one host itself; None where there is none that it would take."""
        return read_back(self.own_message(host, guest), self.topics)

    def of_group(self, group: str, guest: str) -> DesiredDocument | None:
        """A group's document."""
        return read_back(self.messages.get(self.topics.group_desired(group, guest)), self.topics)

    def in_force(self, host: str, guest: str) -> DesiredDocument | None:
        """The document that counts for a host: its own, else that of the first of its groups that has one."""
        agent = self.fleet.hosts.get(host)
        groups = (*agent.groups, EVERY_HOST) if agent else (EVERY_HOST,)
        candidates = [self.own(host, guest), *(self.of_group(group, guest) for group in groups)]
        return next((document for document in candidates if document), None)

    def generation(self, host: str, guest: str) -> int:
        """The highest generation known of a host's own document."""
        return known_generation(self.own(host, guest), [self.fleet.guests.get((host, guest))])

    def group_generation(self, group: str, guest: str, hosts: Iterable[str]) -> int:
        """The highest generation known of a group's document, as these hosts of the group observed it."""
        observed = [self.fleet.guests.get((host, guest)) for host in hosts if not self.own_message(host, guest)]
        return known_generation(self.of_group(group, guest), observed)


async def take_census(op: Operator, wanted: Selection, guests: Iterable[str]) -> Census:
    """What is retained about guests on the hosts that may be meant; what changes later comes by `op.message`."""
    census = Census(Fleet(op.topics))
    for message in await op.retained(*_filters(op.topics, wanted, guests)):
        census.take(message)
    return census


def _filters(topics: FleetTopics, wanted: Selection, guests: Iterable[str]) -> Iterator[str]:
    hosts = [topics.of(host) for host in wanted.hosts]
    yield from [host.agent for host in hosts] or [topics.every_agent]
    for guest in guests:
        yield topics.desired_of_groups(guest)
        yield from [host.desired(guest) for host in hosts] or [topics.desired_anywhere(guest)]
        yield from [host.status(guest) for host in hosts] or [topics.status_anywhere(guest)]
