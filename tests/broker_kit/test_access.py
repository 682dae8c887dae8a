"""Who may do what on the kit's broker, tried with real certificates: a host reaches its own topics and no other's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.bus.connection import Connection, DeniedError
from agent.bus.operator import operator
from agent.bus.session import BusSession
from agent.bus.topics import Topics
from agent.settings import Settings
from tests.broker_kit.kit import KitBroker

OWN, OTHER = Topics("lab", "db1"), Topics("lab", "db2")


@asynccontextmanager
async def host(broker: KitBroker, name: str = "db1", client: str | None = None) -> AsyncIterator[Connection]:
    async with Connection(broker.as_host(name), client=client or name, user=name) as connection:
        yield connection


@asynccontextmanager
async def alice(broker: KitBroker, client: str = "operator-test") -> AsyncIterator[Connection]:
    async with Connection(broker.as_operator(), client=client, user="") as connection:
        yield connection


async def test_the_agents_session_finds_nothing_to_complain_about(broker: KitBroker, tmp_path: Path) -> None:
    synced = asyncio.Event()
    got: list[bytes] = []

    async def take(messages: list[object]) -> None:
        got.extend(b"document" for _ in messages)

    async def answer(_: object) -> bytes:
        return b"reply"

    async def sync() -> None:
        synced.set()

    session = BusSession(
        broker=broker.as_host("db1"),
        topics=OWN,
        groups=["web"],
        birth=lambda state: b'{"state": "%s", "session": "1"}' % state.encode(),
        on_documents=take,  # type: ignore[arg-type]
        on_command=answer,
        on_synced=sync,
        spool=tmp_path / "events.jsonl",
    )
    task = asyncio.create_task(session.run())
    try:
        async with asyncio.timeout(60):
            await synced.wait()
        session.publish_retained(OWN.status("vm1"), b"status")
        session.publish_retained(OWN.host_status, b"status")
        session.publish_event(OWN.event("guest"), b"event")
        async with operator(Settings(host="alice", fleet="lab", broker=broker.as_operator())) as op:
            await op.publish(OWN.desired("vm1"), b"1")
            await op.publish(OWN.group_desired("web", "vm2"), b"2")
            await op.publish(OWN.trust, b"3")
            replies = [reply async for reply in op.ask(["db1"], "status", seconds=60)]
            assert replies == [("db1", b"reply")]
            found = {message.topic for message in await op.retained(OWN.agent, OWN.status_filter, OWN.host_status)}
            for topic in (OWN.desired("vm1"), OWN.group_desired("web", "vm2"), OWN.trust):
                await op.publish(topic, b"")
        assert found == {OWN.agent, OWN.status("vm1"), OWN.host_status}
        assert len(got) >= 3
        assert session.trouble is None
    finally:
        task.cancel()
        await asyncio.wait((task,))


@pytest.mark.parametrize(
    "topic",
    [
        OTHER.desired("vm1"),
        OTHER.status("vm1"),
        OTHER.agent,
        OTHER.sync,
        OTHER.event("guest"),
        OTHER.command("plan"),
        OTHER.host_status,
        OWN.desired("vm1"),
        OWN.group_desired("all", "vm1"),
        OWN.trust,
        OWN.operator("x", "sync"),
        OWN.rollout("k3f9qa", "plan"),
        OWN.rollout("k3f9qa", "before", "0" * 64),
        f"{OWN.root}/status/more",
        "elsewhere",
    ],
)
async def test_a_host_may_not_write_what_is_not_its_own(broker: KitBroker, topic: str) -> None:
    async with host(broker) as own:
        with pytest.raises(DeniedError, match="access list"):
            await own.deliver(topic, b"x", retain=True)


async def test_a_host_may_not_read_what_is_not_its_own(broker: KitBroker) -> None:
    own = [OWN.desired("vm1"), OWN.group_desired("all", "vm1"), OWN.trust]
    others = [
        OTHER.desired("vm1"),
        OTHER.status("vm1"),
        OTHER.agent,
        OTHER.command("plan"),
        OWN.operator("x", "replies"),
        OWN.rollout("k3f9qa", "before", "0" * 64),
    ]
    async with alice(broker) as op, host(broker) as connection:
        await connection.follow(["tapster/#", "#", *others])
        for topic in [*others, *own]:
            await op.deliver(topic, b"x", retain=True)
        seen: list[str] = []
        async with asyncio.timeout(5):
            while not set(own) <= set(seen):
                seen += [message.topic for message in await connection.batch()]
        assert not set(seen) & set(others)
        for topic in [*others, *own]:
            await op.deliver(topic, b"", retain=True)


async def test_a_host_cannot_take_over_anothers_session(broker: KitBroker) -> None:
    """Its client id is its certificate's, whatever it says; what waits for the other one stays the other one's."""
    async with Connection(broker.as_host("db2"), client="db2", user="db2", resume=True, expiry=60) as victim:
        await victim.follow([OTHER.desired_filter])
        async with host(broker, "db1", client="db2") as thief, alice(broker) as op:
            await thief.follow([OTHER.desired_filter])
            await op.deliver(OTHER.desired("vm9"), b"secret")
            async with asyncio.timeout(5):
                (message,) = await victim.batch()
            assert message.payload == b"secret"
            victim.acknowledge([message])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await thief.batch()
    async with alice(broker) as op:
        await op.deliver(OTHER.desired("vm9"), b"queued")
    async with Connection(broker.as_host("db1"), client="db2", user="db2", resume=True, expiry=60) as thief:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await thief.batch()
    async with Connection(broker.as_host("db2"), client="db2", user="db2", resume=True) as victim:
        async with asyncio.timeout(5):
            (message,) = await victim.batch()
        assert message.payload == b"queued"


async def test_operators_alone_see_how_the_broker_fares(broker: KitBroker) -> None:
    async with alice(broker) as op, host(broker) as own:
        for connection in (op, own):
            await connection.follow(["$SYS/broker/heap/current"])
        async with asyncio.timeout(30):
            (message, *_) = await op.batch()
        assert int(message.payload) > 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await own.batch()
        with pytest.raises(DeniedError, match="access list"):
            await op.deliver("$SYS/broker/heap/current", b"0")
