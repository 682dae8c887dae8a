"""What is published of a guest, and how often."""

import asyncio
import json
import time

import pytest

from agent.bus.topics import Scope, Topics
from agent.definition import Limits, parse_domain
from agent.desired import DesiredWorld, GuestInForce
from agent.document import DesiredDocument
from agent.events import EventSource
from agent.reporter import Reporter
from agent.status import Capabilities, Phase
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey
from tests.metrics.test_counts import UP

TOPICS = Topics("lab", "host1")
KEYS = [DiskKey("vm1", "vda"), DiskKey("vm1", "vdb")]


class Bus:
    """Keeps what is published."""

    trouble = None
    dropped_events = 0

    def __init__(self) -> None:
        self.statuses = list[bytes]()
        self.hosts = list[bytes]()
        self.events = list[bytes]()

    def publish_retained(self, topic: str, payload: bytes) -> None:
        (self.hosts if topic == TOPICS.host_status else self.statuses).append(payload)

    def publish_event(self, _topic: str, payload: bytes) -> None:
        self.events.append(payload)


class Guest:
    """A reporter, and a guest with two disks that documents come for."""

    def __init__(self) -> None:
        self.bus = Bus()
        self._world = DesiredWorld(host="host1", groups=(), partial=True)
        self.reporter = Reporter(
            topics=TOPICS,
            world=self._world,
            events=EventSource(host="host1", fleet="lab", session="1"),
            capabilities=Capabilities(backends=(), formats=(), servers={}, kernel="6.1"),
            stable_path=str,
        )
        self.reporter.connect(self.bus)

    def push(self, generation: int) -> None:
        """A document of this generation is in force, and its disks are about to be looked at."""
        disks = "".join(
            f"<disk type='file'><source file='/{generation}'/><target dev='{key.target}'/></disk>" for key in KEYS
        )
        body = f"<domain><name>vm1</name><devices>{disks}</devices></domain>".encode()
        document = DesiredDocument(
            scope=Scope("host", "host1"), guest="vm1", generation=generation, state="present", sha256="", body=body
        )
        definition = parse_domain(body, name="vm1", limits=Limits())
        self._world.put(GuestInForce(document=document, definition=definition))
        self.reporter.expect("vm1", set(KEYS))
        self.reporter.refresh("vm1")

    def take_down(self, keys: set[DiskKey]) -> None:
        """A document that wants no disk is in force, and these disks of it may be here."""
        document = DesiredDocument(
            scope=Scope("host", "host1"), guest="vm1", generation=1, state="absent", sha256="", body=b""
        )
        self._world.put(GuestInForce(document=document, definition=None))
        self.reporter.expect("vm1", keys)
        self.reporter.refresh("vm1")

    def up(self, key: DiskKey) -> None:
        """The disk was looked at and is up."""
        self.reporter.report(key, UP._replace(began=time.monotonic()))


async def shown() -> None:
    """Let what is to be published at once be published."""
    await asyncio.sleep(0.01)


async def test_one_status_tells_of_all_disks_of_a_new_document(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUSH_SECONDS", "FLUSH_SECONDS_MAX"):  # or a machine that stands still would have one told too early
        monkeypatch.setattr(f"agent.reporter.{name}", 3600)
    guest = Guest()
    for generation in (1, 2):
        guest.push(generation)
        await shown()
        guest.up(KEYS[0])
        await shown()
        assert len(guest.bus.statuses) == generation - 1
        guest.up(KEYS[1])
        await shown()
        assert json.loads(guest.bus.statuses[-1])["observed_generation"] == generation
        assert len(guest.bus.statuses) == generation


async def test_what_was_told_is_told_again_only_to_a_broker_that_may_have_forgotten_it() -> None:
    guest = Guest()
    guest.push(1)
    for key in KEYS:
        guest.up(key)
    guest.reporter.show_host()
    await shown()
    for key in KEYS:
        guest.up(key)
    guest.reporter.show_host()
    await shown()
    assert (len(guest.bus.statuses), len(guest.bus.hosts)) == (1, 1)
    guest.reporter.show_all()
    guest.reporter.show_host()
    await shown()
    assert (len(guest.bus.statuses), len(guest.bus.hosts)) == (2, 2)


async def test_a_guest_is_not_down_before_its_disks_were_looked_at() -> None:
    guest = Guest()
    guest.take_down(set(KEYS))
    assert guest.reporter.guest_status("vm1").phase == "Pending"
    for key in KEYS:
        down = UP._replace(phase=Phase.DOWN, reason=Reason.TAKEN_DOWN, attached=None, began=time.monotonic())
        guest.reporter.report(key, down)
    await shown()
    assert [json.loads(status)["phase"] for status in guest.bus.statuses] == ["Down"]
