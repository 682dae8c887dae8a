"""Events that the broker did not take outlive the agent: in order, bounded, and what was dropped is counted."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.bus.outbox import Outbox
from agent.bus.spool import DELIVERY_SECONDS, Spool
from tests.broker import Broker, running_broker
from tests.bus.parties import TOPICS, Agent, outsider, receive, running, settings, until

TOPIC = TOPICS.event("disk")


@pytest.fixture
def broker() -> Iterator[Broker]:
    with running_broker() as broker:
        yield broker


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def outbox(*payloads: bytes, room: int = 5) -> Outbox:
    made = Outbox(room=room)
    for payload in payloads:
        made.append(TOPIC, payload)
    return made


def content(file: Path) -> bytes:
    return file.read_bytes()


def cut_short(file: Path) -> None:
    """Make it end within a line, and begin with what was never an event."""
    more = json.dumps({"topic": TOPIC, "payload": "3"}).encode()
    file.write_bytes(b"[]\n\xff\n" + file.read_bytes() + more[:-4])


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o777


def is_there(file: Path) -> bool:
    return file.exists()


@contextmanager
def reading(file: Path) -> Iterator[Callable[[], bytes]]:
    """Read a FIFO; gives all that has come through it so far."""
    descriptor, so_far = os.open(file, os.O_RDONLY | os.O_NONBLOCK), bytearray()

    def read() -> bytes:
        with suppress(BlockingIOError):
            so_far.extend(os.read(descriptor, 1 << 16))
        return bytes(so_far)

    try:
        yield read
    finally:
        os.close(descriptor)


async def found(file: Path, room: int = 5) -> tuple[list[bytes], int]:
    """What the next run takes over."""
    later = Outbox(room=room)
    await Spool(file, later).load()
    return [event.payload for event in later.events().values()], later.dropped


async def test_the_next_agent_delivers_what_this_one_could_not(broker: Broker, file: Path) -> None:
    broker.stop()
    first = Agent(settings(broker), room=200, spool=file)
    async with running(first):
        await until(lambda: first.session.trouble)
        for number in range(250):
            first.session.publish_event(TOPIC, b"%d" % number)
    second = Agent(settings(broker), room=200, spool=file)
    await second.session.load()
    assert second.session.dropped_events == 50
    second.session.publish_event(TOPIC, b"started")
    broker.start()
    async with outsider(broker, f"{TOPICS.root}/events/+") as operator, running(second):
        events = [payload for _, payload in await receive(operator, 200)]
        assert events == [b"%d" % number for number in range(51, 250)] + [b"started"]
        await until(lambda: not is_there(file))


async def test_an_agent_that_is_killed_leaves_what_waited_for_a_while(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.bus.spool.DELIVERY_SECONDS", 0.01)
    waiting = outbox(b"1", b"2")
    following = asyncio.create_task(Spool(file, waiting).run())
    await until(file.exists)
    waiting.append(TOPIC, b"3")
    await until(lambda: b'"3"' in content(file))
    following.cancel()
    assert mode(file) == 0o600
    assert await found(file) == ([b"1", b"2", b"3"], 0)


async def test_what_comes_while_the_disk_is_slow_is_written_next(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.bus.spool.DELIVERY_SECONDS", 0.01)
    os.mkfifo(file)  # a file that takes nothing until somebody reads
    waiting = outbox(b"1")
    following = asyncio.create_task(Spool(file, waiting).run())
    await until(lambda: not waiting.stirred.is_set())
    waiting.append(TOPIC, b"2")
    with reading(file) as read:
        await until(lambda: b'"2"' in read())
        assert read().index(b'"1"') < read().index(b'"2"')
    following.cancel()


async def test_a_file_whose_end_is_missing_is_read_as_far_as_it_goes(file: Path) -> None:
    await Spool(file, outbox(b"1", b"2")).close()
    cut_short(file)
    assert await found(file) == ([b"1", b"2"], 0)


async def test_the_file_does_not_grow_beyond_twice_what_counts(file: Path) -> None:
    waiting = outbox(room=5)
    spool = Spool(file, waiting)
    for number in range(40):
        waiting.append(TOPIC, b"%d" % number)
        await spool.close()
        assert len(content(file).splitlines()) <= 10
    assert await found(file) == ([b"35", b"36", b"37", b"38", b"39"], 35)


async def test_what_was_delivered_in_time_is_never_written(file: Path) -> None:
    waiting = outbox(b"1")
    await waiting.batch(10)
    waiting.delivered()
    await Spool(file, waiting).close()
    assert not is_there(file)


async def test_what_came_a_moment_ago_is_not_written_with_what_has_waited(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = outbox()
    monkeypatch.setattr("agent.bus.outbox.monotonic", lambda: time.monotonic() - DELIVERY_SECONDS)
    waiting.append(TOPIC, b"1")
    monkeypatch.setattr("agent.bus.outbox.monotonic", lambda: time.monotonic() + 1000)
    waiting.append(TOPIC, b"2")
    spool = Spool(file, waiting)
    following = asyncio.create_task(spool.run())
    await until(file.exists)
    await until(lambda: b'"1"' in content(file))
    assert b'"2"' not in content(file)
    following.cancel()
    await spool.close()  # in the end there is no time to wait for the broker
    assert await found(file) == ([b"1", b"2"], 0)


async def test_a_disk_that_takes_nothing_is_told_of_once(tmp_path: Path) -> None:
    waiting = outbox(b"1")
    spool = Spool(tmp_path / "missing" / "events.jsonl", waiting)
    with capture_logs() as logs:
        await spool.close()
        await spool.close()
    assert [line["log_level"] for line in logs] == ["warning", "debug"]
    assert len(waiting.events()) == 1
