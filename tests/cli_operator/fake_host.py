"""A host as the bus sees it, whose answers to documents a test decides."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from agent.bus.connection import Connection
from agent.bus.topics import DesiredTopic, Topics
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


def birth(state: str = "online") -> bytes:
    values = {"state": state, "session": "s", "boot_id": "b", "version": "1.2.3", "labels": {}}
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
    *disks: DiskStatus, name: str = "vm1", generation: int | None = 1, sha256: str = "0", rejected: Reason | None = None
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
        host="db1",
        phase=phases[0] if phases else Phase.UP,
        observed_generation=generation,
        sha256=sha256,
        conditions=(accepted,),
        disks=disks,
    )


Answer = Callable[[Mapping[str, Any], str], GuestStatus | None]
"""From a document and its digest to the status that the host shows then; None for none."""


@contextmanager
def fake_host(settings: Settings, answer: Answer) -> Iterator[Topics]:
    """A host `db1` that is online and answers each document, in a thread with a loop of its own."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    topics = Topics(settings.fleet, "db1")

    async def live() -> None:
        async with Connection(settings.broker, client="db1", user="db1") as connection:
            await connection.follow([topics.desired_filter])
            await connection.deliver(topics.agent, birth(), retain=True)
            ready.set()
            while True:
                for message in await connection.batch():
                    topic = topics.parse(message.topic)
                    assert isinstance(topic, DesiredTopic)
                    status = answer(json.loads(message.payload), digest(bytes(message.payload)))
                    if status is not None:
                        payload = status.model_dump_json().encode()
                        await connection.deliver(topics.status(topic.guest), payload, retain=True)

    def run() -> None:
        task = loop.create_task(live())
        loop.call_later(60, task.cancel)
        tasks.append(task)
        loop.run_until_complete(asyncio.wait((task,)))

    tasks: list[asyncio.Task[None]] = []
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(10)
        yield topics
    finally:
        loop.call_soon_threadsafe(tasks[0].cancel)
        thread.join(10)
        loop.close()
