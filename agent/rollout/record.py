"""What is kept of a rollout on the bus: five kinds of retained messages, and the picture that they make together. Pure.

`plan` is written once. `waves/<n>` is written with the hosts at the start, and again before the wave's documents are
published, with all that is needed to know them again and to take them back; `before/<digest>` has what hosts were told
before. `state` is where it stands. `driver` is who drives it; that message is the connection's will as well, so a
driver that is gone is known to be gone without anybody's clock.
"""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationError

from agent.bus.message import Message
from agent.bus.topics import FleetTopics, RolloutTopic
from agent.document import digest
from agent.status import Status

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # without what is read as something else
_UNIQUE_WITHIN = 6

Count = Annotated[int, Field(ge=0)]


class Phase(StrEnum):
    """Where a rollout stands."""

    CLAIMING = "claiming"
    ROLLING = "rolling"
    STOPPED = "stopped"
    DONE = "done"
    ABORTED = "aborted"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"


UNDER_WAY = frozenset({Phase.CLAIMING, Phase.ROLLING, Phase.ROLLING_BACK})
"""Phases in which nobody else may roll out the same guest to the same hosts."""

ENDED = frozenset({Phase.DONE, Phase.ROLLED_BACK, Phase.ABORTED})
"""Phases in which there is nothing to go on with."""

TAKEN_BACK = frozenset({Phase.ROLLING_BACK, Phase.ROLLED_BACK})
"""Phases in which hosts get again, or have again, what they were told before."""


class RolloutPlan(Status):
    """What is rolled out, and how: retained on `rollouts/<id>/plan`.

    Attributes:
        guest: The guest.
        definition: Its domain XML; None takes the guest's disks down.
        template: Whether `{host}` and labels are filled into source paths.
        targets: How the hosts were named, as the command line had it.
        hosts: How many there are.
        waves: In how many waves.
        canary: How many hosts the first wave has that must all do well; 0 for none.
        max_failed: How many hosts may fail in all.
        timeout_s: Seconds for each wave; a host that has not done it by then has failed.
        rollback: Whether the previous documents are restored when too many fail.
        signed: Whether its documents are signed; the key is the operator's, and never here.
        operator: Who started it.
        started_at: When, by the clock of that operator's machine.
    """

    guest: str
    definition: str | None
    template: bool
    targets: str
    hosts: Count
    waves: Count
    canary: Count
    max_failed: Count
    timeout_s: Annotated[float, Field(gt=0)]
    rollback: bool
    signed: bool
    operator: str
    started_at: AwareDatetime


class HostEntry(Status):
    """One host of a wave. All but its name is empty until the wave begins.

    Attributes:
        host: The host.
        generation: Of the document that it gets.
        sha256: Of the document's payload.
        previous: Before that: a `document`, nothing of this guest (`none`), or that can't be told (`unknown`).
        before: Where there is one: the digest that `before/<digest>` is found by.
    """

    host: str
    generation: int | None = None
    sha256: str | None = None
    previous: Literal["document", "none", "unknown"] | None = None
    before: str | None = None


class RolloutWave(Status):
    """The hosts that get the change together: retained on `rollouts/<id>/waves/<number>`, counted from 1."""

    number: Annotated[int, Field(ge=1)]
    hosts: tuple[HostEntry, ...]

    @property
    def prepared(self) -> bool:
        """Whether it is known what each host gets and had."""
        return all(entry.sha256 is not None for entry in self.hosts)


class BeforeDocument(Status):
    """What hosts were told before: retained on `rollouts/<id>/before/<digest>`."""

    state: Literal["present", "absent"]
    domain_xml: str | None

    @property
    def payload(self) -> bytes:
        """As it is published."""
        return self.model_dump_json().encode()

    @property
    def key(self) -> str:
        """What it is found by."""
        return digest(self.payload)


class RolloutState(Status):
    """Where a rollout stands: retained on `rollouts/<id>/state`.

    Attributes:
        phase: In a word.
        wave: The wave that it has come to, counted from 1.
        message: Why it stands there, in a sentence.
        operator: Who brought it there.
        changed_at: When, by the clock of that operator's machine.
    """

    phase: Phase
    wave: Annotated[int, Field(ge=1)]
    message: str
    operator: str
    changed_at: AwareDatetime


class RolloutDriver(Status):
    """Who drives a rollout: retained on `rollouts/<id>/driver`, and the will of that connection.

    Attributes:
        operator: User and machine.
        session: Tells one run of the command from every other one.
        driving: False once it is gone, by its own word or by the broker's.
    """

    operator: str
    session: str
    driving: bool


@dataclass(slots=True)
class Record:
    """All that is kept of one rollout."""

    id: str
    plan: RolloutPlan
    state: RolloutState | None = None
    driver: RolloutDriver | None = None
    waves: dict[int, RolloutWave] = field(default_factory=dict)
    before: dict[str, BeforeDocument] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether nothing is missing that is needed to go on."""
        return self.state is not None and set(self.waves) == set(range(1, self.plan.waves + 1))

    @property
    def driven(self) -> bool:
        """Whether somebody is at it now."""
        return self.driver is not None and self.driver.driving

    @property
    def under_way(self) -> bool:
        """Whether it has begun and not come to an end, driven or not."""
        return self.state is not None and self.state.phase in UNDER_WAY

    def hosts(self) -> set[str]:
        """Every host of every wave."""
        return {entry.host for wave in self.waves.values() for entry in wave.hosts}


def new_id() -> str:
    """A name for a rollout that can be read out and typed."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_UNIQUE_WITHIN))


def messages(record: Record, topics: FleetTopics) -> Iterator[tuple[str, bytes]]:
    """What is published of plan and waves when a rollout begins."""
    yield topics.rollout(record.id, "plan"), record.plan.model_dump_json().encode()
    yield from (wave_message(record.id, wave, topics) for wave in record.waves.values())


def wave_message(rollout: str, wave: RolloutWave, topics: FleetTopics) -> tuple[str, bytes]:
    """Where a wave is kept, and as what."""
    return topics.rollout(rollout, "waves", str(wave.number)), wave.model_dump_json().encode()


class Ledger:
    """The rollouts that the bus knows, from messages in any order.

    Attributes:
        unreadable: Topics whose message is not what this version knows, and why.
    """

    def __init__(self, topics: FleetTopics) -> None:
        self._topics = topics
        self._parts: dict[str, dict[tuple[str, str | None], bytes]] = {}
        self.unreadable: dict[str, str] = {}

    def take(self, message: Message) -> str | None:
        """Take a message in; returns the rollout that it is about, None for a message of another kind."""
        topic = self._topics.parse(message.topic)
        if not isinstance(topic, RolloutTopic):
            return None
        parts = self._parts.setdefault(topic.rollout, {})
        parts[topic.part, topic.key] = message.payload
        return topic.rollout

    def records(self) -> dict[str, Record]:
        """Every rollout that can be read, by id, the latest start last."""
        self.unreadable.clear()
        found = [record for rollout in self._parts if (record := self.record(rollout))]
        return {record.id: record for record in sorted(found, key=lambda one: (one.plan.started_at, one.id))}

    def record(self, rollout: str) -> Record | None:
        """One rollout; None if it is not there or can't be read."""
        parts = {key: payload for key, payload in self._parts.get(rollout, {}).items() if payload}
        if ("plan", None) not in parts:
            return None
        try:
            return _record(rollout, parts)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, problem["loc"])) or "the whole"
            self.unreadable[rollout] = f"{error.title}: {place}: {problem['msg']}"
            return None


def _record(rollout: str, parts: Mapping[tuple[str, str | None], bytes]) -> Record:
    record = Record(rollout, RolloutPlan.model_validate_json(parts["plan", None]))
    for (part, key), payload in parts.items():
        match part:
            case "state":
                record.state = RolloutState.model_validate_json(payload)
            case "driver":
                record.driver = RolloutDriver.model_validate_json(payload)
            case "waves":
                wave = RolloutWave.model_validate_json(payload)
                record.waves[wave.number] = wave
            case "before" if key:
                record.before[key] = BeforeDocument.model_validate_json(payload)
    record.waves = dict(sorted(record.waves.items()))
    return record
