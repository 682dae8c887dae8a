"""Every topic of the bus, built and parsed in one place. Pure.

All stand under `tapster/v1/<fleet>`. What `parse` returns is typed, so that callers match on it instead of
splitting strings. Topic names and filters are those of MQTT v5, section 4.7.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, get_args

from reconcilers.spec import GUEST_NAME

NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
"""A fleet, a host or a group: one topic level, and a host's user name, client id and certificate CN."""

CLIENT = re.compile(r"[A-Za-z0-9_.-]{1,128}")
"""An operator's client id, which is a topic level too."""

EVERY_HOST = "all"
"""The built-in group that every host is in."""

ScopeKind = Literal["host", "group"]
EventKind = Literal["guest", "disk", "host"]
Verb = Literal["plan", "resync", "status"]
Channel = Literal["replies", "sync"]
RolloutPart = Literal["plan", "state", "driver", "waves", "before"]


class TopicError(ValueError):
    """The topic is none of this bus, or a name can't be a topic level. The message says which and why."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Whom a desired document is for: one host, or the hosts of a group."""

    kind: ScopeKind
    name: str


@dataclass(frozen=True, slots=True)
class DesiredTopic:
    """A desired document. `guest` is as it came: check `valid_guest` before it names anything."""

    scope: Scope
    guest: str

    @property
    def valid_guest(self) -> bool:
        """Whether the last level can be a guest's name."""
        return GUEST_NAME.fullmatch(self.guest) is not None


@dataclass(frozen=True, slots=True)
class AgentTopic:
    """A host's birth, farewell or will."""

    host: str


@dataclass(frozen=True, slots=True)
class HostStatusTopic:
    """A host at a glance."""

    host: str


@dataclass(frozen=True, slots=True)
class StatusTopic:
    """The status of one guest on one host."""

    host: str
    guest: str


@dataclass(frozen=True, slots=True)
class EventTopic:
    """Something that happened on a host."""

    host: str
    kind: EventKind


@dataclass(frozen=True, slots=True)
class CommandTopic:
    """A request to a host. A verb that this version does not know is kept as it came."""

    host: str
    verb: str


@dataclass(frozen=True, slots=True)
class SyncTopic:
    """Where a host sends nonces to itself."""

    host: str


@dataclass(frozen=True, slots=True)
class TrustTopic:
    """The statements by which the fleet's keys hand over."""


@dataclass(frozen=True, slots=True)
class OperatorTopic:
    """What belongs to one operator's connection: replies to its requests, and nonces to itself."""

    client: str
    channel: Channel


@dataclass(frozen=True, slots=True)
class RolloutTopic:
    """What is kept of a rollout. `key` is a wave's number, or the digest of a document from before it."""

    rollout: str
    part: RolloutPart
    key: str | None = None


Topic = (
    DesiredTopic
    | AgentTopic
    | HostStatusTopic
    | StatusTopic
    | EventTopic
    | CommandTopic
    | SyncTopic
    | TrustTopic
    | OperatorTopic
    | RolloutTopic
)


@dataclass(frozen=True, slots=True)
class FleetTopics:
    """The topics of one fleet as an operator sees them: every host, every group.

    Raises:
        TopicError: The fleet's name can't be a topic level.
    """

    fleet: str

    def __post_init__(self) -> None:
        _checked("fleet", self.fleet, NAME)

    @property
    def prefix(self) -> str:
        """What all topics of the fleet begin with, without a slash at the end."""
        return f"tapster/v1/{self.fleet}"

    @property
    def trust(self) -> str:
        """Where the trust statements stand."""
        return f"{self.prefix}/trust"

    @property
    def every_agent(self) -> str:
        """Filter: the birth messages of all hosts."""
        return f"{self.prefix}/hosts/+/agent"

    @property
    def every_status(self) -> str:
        """Filter: the guest statuses of all hosts."""
        return f"{self.prefix}/hosts/+/status/guests/+"

    @property
    def every_host_status(self) -> str:
        """Filter: all hosts at a glance."""
        return f"{self.prefix}/hosts/+/status/host"

    @property
    def every_event(self) -> str:
        """Filter: what happens on all hosts."""
        return f"{self.prefix}/hosts/+/events/+"

    @property
    def every_desired(self) -> str:
        """Filter: the desired documents of all hosts."""
        return f"{self.prefix}/hosts/+/desired/guests/+"

    @property
    def every_group_desired(self) -> str:
        """Filter: the desired documents of all groups."""
        return f"{self.prefix}/groups/+/desired/guests/+"

    def desired_anywhere(self, guest: str) -> str:
        """Filter: the desired documents of one guest for single hosts."""
        return f"{self.prefix}/hosts/+/desired/guests/{_guest(guest)}"

    def desired_of_groups(self, guest: str) -> str:
        """Filter: the desired documents of one guest for groups."""
        return f"{self.prefix}/groups/+/desired/guests/{_guest(guest)}"

    def status_anywhere(self, guest: str) -> str:
        """Filter: the statuses of one guest, on every host that has it."""
        return f"{self.prefix}/hosts/+/status/guests/{_guest(guest)}"

    def of(self, host: str) -> "Topics":
        """The topics of one host."""
        return Topics(self.fleet, host)

    def group_desired(self, group: str, guest: str) -> str:
        """Where the desired document of a guest stands for the hosts of a group."""
        return f"{self.prefix}/groups/{_checked('group', group, NAME)}/desired/guests/{_guest(guest)}"

    def group_filter(self, group: str) -> str:
        """Filter: the desired documents of a group."""
        return f"{self.prefix}/groups/{_checked('group', group, NAME)}/desired/guests/+"

    def rollout(self, rollout: str, part: RolloutPart, key: str | None = None) -> str:
        """Where a part of a rollout is kept; `+` as its name or its key makes a filter."""
        name = rollout if rollout == "+" else _checked("rollout", rollout, NAME)
        return f"{self.prefix}/rollouts/{name}/{part}" + ("" if key is None else f"/{key}")

    def operator(self, client: str, channel: Channel) -> str:
        """A topic of one operator's connection."""
        return f"{self.prefix}/operators/{_checked('client', client, CLIENT)}/{channel}"

    def parse(self, topic: str) -> Topic:
        """What a topic of this fleet stands for.

        Raises:
            TopicError: It is not of this fleet, or none that the bus has.
        """
        return _parsed(self.prefix, topic)


@dataclass(frozen=True, slots=True)
class Topics(FleetTopics):
    """The topics of one host.

    Raises:
        TopicError: The fleet's or the host's name can't be a topic level.
    """

    host: str

    def __post_init__(self) -> None:
        FleetTopics.__post_init__(self)
        _checked("host", self.host, NAME)

    @property
    def root(self) -> str:
        """What all topics of the host begin with, without a slash at the end."""
        return f"{self.prefix}/hosts/{self.host}"

    @property
    def agent(self) -> str:
        """Birth, farewell and will."""
        return f"{self.root}/agent"

    @property
    def host_status(self) -> str:
        """The host at a glance."""
        return f"{self.root}/status/host"

    @property
    def sync(self) -> str:
        """The barrier: a nonce sent here comes back after everything retained."""
        return f"{self.root}/sync"

    @property
    def desired_filter(self) -> str:
        """Filter: the host's own desired documents."""
        return f"{self.root}/desired/guests/+"

    @property
    def status_filter(self) -> str:
        """Filter: the host's guest statuses."""
        return f"{self.root}/status/guests/+"

    @property
    def command_filter(self) -> str:
        """Filter: requests to the host."""
        return f"{self.root}/cmd/+"

    @property
    def event_filter(self) -> str:
        """Filter: what happens on the host."""
        return f"{self.root}/events/+"

    def desired(self, guest: str) -> str:
        """Where a guest's desired document for this host stands."""
        return f"{self.root}/desired/guests/{_guest(guest)}"

    def status(self, guest: str) -> str:
        """Where a guest's status stands."""
        return f"{self.root}/status/guests/{_guest(guest)}"

    def event(self, kind: EventKind) -> str:
        """Where events about guests, disks or the host go."""
        return f"{self.root}/events/{kind}"

    def command(self, verb: Verb) -> str:
        """Where a request to the host goes."""
        return f"{self.root}/cmd/{verb}"


@lru_cache(maxsize=64)  # who takes a document in asks three times; few, as anybody can make up long topics
def _parsed(prefix: str, topic: str) -> Topic:
    if not topic.startswith(f"{prefix}/"):
        raise TopicError(f"topic {topic!r} is not under {prefix!r}")
    match topic[len(prefix) + 1 :].split("/"):
        case ["hosts", host, *rest] if NAME.fullmatch(host):
            parsed = _parse_host(host, rest)
        case ["groups", group, "desired", "guests", guest] if NAME.fullmatch(group):
            parsed = DesiredTopic(Scope("group", group), guest)
        case ["operators", client, channel] if CLIENT.fullmatch(client) and channel in get_args(Channel):
            parsed = OperatorTopic(client, cast("Channel", channel))
        case ["trust"]:
            parsed = TrustTopic()
        case ["rollouts", rollout, ("plan" | "state" | "driver") as part] if NAME.fullmatch(rollout):
            parsed = RolloutTopic(rollout, part)
        case ["rollouts", rollout, ("waves" | "before") as part, key] if NAME.fullmatch(rollout):
            parsed = RolloutTopic(rollout, part, key)
        case _:
            parsed = None
    if parsed is None:
        raise TopicError(f"topic {topic!r} is none that the bus has; design §3 lists them")
    return parsed


def _parse_host(host: str, levels: list[str]) -> Topic | None:
    parsed: Topic | None = None
    match levels:
        case ["desired", "guests", guest]:
            parsed = DesiredTopic(Scope("host", host), guest)
        case ["agent"]:
            parsed = AgentTopic(host)
        case ["status", "host"]:
            parsed = HostStatusTopic(host)
        case ["status", "guests", guest] if GUEST_NAME.fullmatch(guest):
            parsed = StatusTopic(host, guest)
        case ["events", kind] if kind in get_args(EventKind):
            parsed = EventTopic(host, cast("EventKind", kind))
        case ["cmd", verb]:
            parsed = CommandTopic(host, verb)
        case ["sync"]:
            parsed = SyncTopic(host)
    return parsed


def _checked(what: str, name: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(name):
        raise TopicError(f"{what} {name!r} can't be a topic level; it must match {pattern.pattern}")
    return name


def _guest(name: str) -> str:
    return _checked("guest", name, GUEST_NAME)
