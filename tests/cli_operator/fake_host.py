"""Hosts as the bus sees them, whose answers to documents and requests a test decides."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from paho.mqtt.packettypes import PacketTypes

from agent.bus.connection import Connection
from agent.bus.message import Message
from agent.bus.properties import packet_properties
from agent.bus.topics import CommandTopic, DesiredTopic, Scope, Topics
from agent.document import digest
from agent.settings import Settings
from agent.status import (
    AgentState,
    Capabilities,
    Condition,
    ConditionType,
    DiskError,
    DiskStatus,
    Effective,
    GuestStatus,
    Phase,
    Requested,
    now,
)
from reconcilers.reason import Reason
from reconcilers.spec import Backend, Device, Format

Put = Callable[[str, bytes], None]
"""Publishes something retained."""

CAPABILITIES = Capabilities(backends=(Backend.LOOP,), formats=(Format.RAW,), servers={}, kernel="6.1")


def birth(state: str = "online", labels: Mapping[str, str] | None = None, groups: tuple[str, ...] = ()) -> bytes:
    values: dict[str, Any] = {"state": state, "session": "s", "boot_id": "b", "version": "1.2.3"}
    values |= {"labels": dict(labels or {}), "groups": groups}
    return AgentState.model_validate({**values, "capabilities": CAPABILITIES}).model_dump_json().encode()


def disk(target: str, phase: Phase, reason: Reason | None = None, message: str = "because") -> DiskStatus:
    up = phase is Phase.UP
    return DiskStatus(
        target=target,
        device=Device.DISK,
        phase=phase,
        source="/images/a.img",
        requested=Requested(backend=Backend.LOOP, format=Format.RAW),
        effective=Effective(backend=Backend.LOOP, format=Format.RAW, server="kernel") if up else None,
        device_path="/dev/loop7" if up else None,
        stable_path=f"/run/tapster/disks/vm1/{target}" if up else None,
        size_bytes=4 << 30 if up else None,
        read_only=False,
        since=now(),
        error=DiskError(reason=reason, message=message) if reason else None,
    )


def guest(
    *disks: DiskStatus,
    name: str = "vm1",
    host: str = "db1",
    generation: int | None = 1,
    sha256: str = "0",
    rejected: Reason | None = None,
) -> GuestStatus:
    accepted = Condition(
        type=ConditionType.ACCEPTED,
        status="False" if rejected else "True",
        reason=rejected or Reason.ACCEPTED,
        message="it is as it is",
        last_transition_time=now(),
    )
    phases = [disk.phase for disk in disks if disk.phase is not Phase.UP]
    return GuestStatus(
        guest=name,
        host=host,
        phase=phases[0] if phases else Phase.UP,
        observed_generation=generation,
        sha256=sha256,
        conditions=(accepted,),
        disks=disks,
    )


Answer = Callable[[Mapping[str, Any], str], GuestStatus | None]
"""From a document and its digest to the status that the host shows then; None for none."""


@dataclass(frozen=True)
class Fake:
    """A host: how it is born, what it shows after a document, and what it answers to requests."""

    answer: Answer = lambda *_: None
    labels: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    plan: Callable[[bytes], bytes | None] = lambda *_: None
    resync: Callable[[bytes], bytes | None] = lambda *_: None


def up(document: Mapping[str, Any], sha256: str) -> GuestStatus:
    """Every disk does as the document says."""
    phase = Phase.UP if document["state"] == "present" else Phase.DOWN
    return guest(disk("vda", phase), generation=document["generation"], sha256=sha256)


def failing(reason: Reason) -> Answer:
    """The disk does not come up."""
    return lambda document, sha256: guest(
        disk("vda", Phase.FAILED, reason), generation=document["generation"], sha256=sha256
    )


@contextmanager
def fake_host(settings: Settings, answer: Answer) -> Iterator[Topics]:
    """A host `db1` that is online and answers each document."""
    with fake_fleet(settings, {"db1": Fake(answer)}):
        yield Topics(settings.fleet, "db1")


@contextmanager
def fake_fleet(settings: Settings, hosts: Mapping[str, Fake]) -> Iterator[None]:
    """Hosts that are online, on one connection, in a thread with a loop of its own."""
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def live() -> None:
        async with Connection(settings.broker, client=f"fakes-{id(hosts)}", user="fakes") as connection:
            topics = [Topics(settings.fleet, host) for host in hosts]
            filters = [one for host in topics for one in (host.desired_filter, host.command_filter)]
            groups = {group for fake in hosts.values() for group in (*fake.groups, "all")}
            await connection.follow(filters + [topics[0].group_filter(group) for group in groups])
            for host in topics:
                fake = hosts[host.host]
                await connection.deliver(host.agent, birth(labels=fake.labels, groups=fake.groups), retain=True)
            ready.set()
            while True:
                for raw in await connection.batch():
                    await _react(connection, Message.received(raw), hosts, topics[0])
                    connection.acknowledge([raw])

    def run() -> None:
        task = loop.create_task(live())
        loop.call_later(290, task.cancel)
        tasks.append(task)
        loop.run_until_complete(asyncio.wait((task,)))
        if not task.cancelled():
            task.result()

    tasks: list[asyncio.Task[None]] = []
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        loop.call_soon_threadsafe(tasks[0].cancel)
        thread.join(10)
        loop.close()


async def _react(connection: Connection, message: Message, hosts: Mapping[str, Fake], topics: Topics) -> None:
    match topics.parse(message.topic):
        case DesiredTopic(Scope("host", host), name):
            await _show(connection, message, topics.of(host), name, hosts[host])
        case DesiredTopic(Scope("group", group), name):
            for host, fake in hosts.items():
                if group in (*fake.groups, "all"):
                    await _show(connection, message, topics.of(host), name, fake)
        case CommandTopic(host, "plan" | "resync" as verb):
            fake = hosts[host]
            answer = (fake.plan if verb == "plan" else fake.resync)(message.payload)
            if answer is not None and message.response_topic:
                properties = packet_properties(PacketTypes.PUBLISH, CorrelationData=message.correlation)
                await connection.deliver(message.response_topic, answer, properties=properties)


async def _show(connection: Connection, message: Message, topics: Topics, name: str, fake: Fake) -> None:
    if not message.payload:
        return
    status = fake.answer(json.loads(message.payload), digest(message.payload))
    if status is not None:
        mine = status.model_copy(update={"host": topics.host, "guest": name})
        await connection.deliver(topics.status(name), mine.model_dump_json().encode(), retain=True)
