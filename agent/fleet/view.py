"""The fleet as its retained messages tell it: hosts, and the status of their guests. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import ValidationError

from agent.bus.message import Message
from agent.bus.topics import AgentTopic, FleetTopics, HostStatusTopic, StatusTopic
from agent.status import AT_REST, AgentState, Condition, ConditionType, DiskStatus, GuestStatus, HostStatus


@dataclass(slots=True)
class Fleet:
    """Takes messages in any order; the last one on a topic counts, and an empty one takes away.

    Attributes:
        topics: The fleet's topics.
        hosts: What each host's agent last said about itself.
        guests: The status of each guest, by host and name.
        glances: What each host says about itself at a glance.
        unreadable: Topics whose last message is not what this version knows, and why.
    """

    topics: FleetTopics
    hosts: dict[str, AgentState] = field(default_factory=dict)
    guests: dict[tuple[str, str], GuestStatus] = field(default_factory=dict)
    glances: dict[str, HostStatus] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def take(self, message: Message) -> None:
        """Take a message in; one of another kind is ignored."""
        self.unreadable.pop(message.topic, None)
        try:
            match self.topics.parse(message.topic):
                case AgentTopic(host):
                    self.hosts.pop(host, None)
                    if message.payload:
                        self.hosts[host] = AgentState.model_validate_json(message.payload)
                case HostStatusTopic(host):
                    self.glances.pop(host, None)
                    if message.payload:
                        self.glances[host] = HostStatus.model_validate_json(message.payload)
                case StatusTopic(host, guest):
                    self.guests.pop((host, guest), None)
                    if message.payload:
                        self.guests[host, guest] = GuestStatus.model_validate_json(message.payload)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, problem["loc"])) or "the whole"
            self.unreadable[message.topic] = f"{place}: {problem['msg']}"

    def only(self, host: Callable[[str], bool]) -> "Fleet":
        """What it shows of some hosts."""
        return Fleet(
            self.topics,
            {name: agent for name, agent in self.hosts.items() if host(name)},
            {key: status for key, status in self.guests.items() if host(key[0])},
            {name: glance for name, glance in self.glances.items() if host(name)},
            self.unreadable,
        )

    def ordered(self) -> list[GuestStatus]:
        """All guest statuses, by host and guest."""
        return [self.guests[key] for key in sorted(self.guests)]


def trouble(status: GuestStatus) -> list[DiskStatus]:
    """The disks that are not as their definition wants them."""
    return [disk for disk in status.disks if disk.phase not in AT_REST]


def turned_away(status: GuestStatus) -> Condition | None:
    """The condition that says why the guest's last document was turned away; None if it was not."""
    accepted = (one for one in status.conditions if one.type is ConditionType.ACCEPTED and one.status == "False")
    return next(accepted, None)


def rejection(status: GuestStatus) -> str | None:
    """The same as reason and sentence."""
    why = turned_away(status)
    return f"{why.reason}: {why.message}" if why else None


def well(status: GuestStatus) -> bool:
    """Whether there is nothing to do about the guest."""
    return status.phase in AT_REST and rejection(status) is None and not trouble(status)
