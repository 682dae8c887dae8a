"""The access list for production, tried by a real mosquitto: a host reaches its own topics and no other's."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.bus.connection import Connection, DeniedError
from agent.bus.operator import operator
from agent.bus.session import BusSession
from agent.bus.topics import Topics
from agent.settings import BrokerSettings, Settings
from tests.broker import Broker, running_broker

LIST = Path(__file__).parents[2] / "deploy/broker/tapster.acl"
OWN, OTHER = Topics("lab", "db1"), Topics("lab", "db2")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    shutil.copy(LIST, tmp_path / "acl")
    with running_broker(f"acl_file {tmp_path}/acl\n") as broker:
        yield broker


def settings(broker: Broker, user: str, folder: Path) -> BrokerSettings:
    password = folder / "password"
    password.write_text("any will do here\n")
    return BrokerSettings(host=broker.host, port=broker.port, username=user, password_file=password)


@asynccontextmanager
async def connected(broker: Broker, user: str, folder: Path) -> AsyncIterator[Connection]:
    async with Connection(settings(broker, user, folder), client=f"{user}-test", user=user) as connection:
        yield connection


async def test_the_agents_session_finds_nothing_to_complain_about(broker: Broker, tmp_path: Path) -> None:
    synced = asyncio.Event()
    got: list[bytes] = []

    async def take(messages: object) -> None:
        got.append(b"document")

    async def answer(_: object) -> bytes:
        return b"reply"

    async def sync() -> None:
        synced.set()

    session = BusSession(
        broker=settings(broker, "db1", tmp_path),
        topics=OWN,
        groups=["web"],
        birth=lambda state: b'{"state": "%s", "session": "1"}' % state.encode(),
        on_documents=take,
        on_command=answer,
        on_synced=sync,
    )
    task = asyncio.create_task(session.run())
    try:
        async with asyncio.timeout(10):
            await synced.wait()
        session.publish_retained(OWN.status("vm1"), b"status")
        session.publish_retained(OWN.host_status, b"status")
        session.publish_event(OWN.event("guest"), b"event")
        everything = Settings(host="db1", fleet="lab", broker=settings(broker, "operator", tmp_path))
        async with operator(everything) as op:
            await op.publish(OWN.desired("vm1"), b"1")
            await op.publish(OWN.group_desired("web", "vm2"), b"2")
            replies = [reply async for reply in op.ask(["db1"], "status", seconds=5)]
            assert replies == [("db1", b"reply")]
            found = {message.topic for message in await op.retained(OWN.agent, OWN.status_filter, OWN.host_status)}
        assert found == {OWN.agent, OWN.status("vm1"), OWN.host_status}
        assert len(got) == 2
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
        OWN.desired("vm1"),
        OWN.group_desired("all", "vm1"),
        OWN.operator("x", "sync"),
    ],
)
async def test_a_host_may_not_write_what_is_not_its_own(broker: Broker, tmp_path: Path, topic: str) -> None:
    async with connected(broker, "db1", tmp_path) as host:
        with pytest.raises(DeniedError, match="access list"):
            await host.deliver(topic, b"x", retain=True)


async def test_a_host_may_not_read_what_is_not_its_own(broker: Broker, tmp_path: Path) -> None:
    own = [OWN.desired("vm1"), OWN.group_desired("all", "vm1")]
    async with connected(broker, "operator", tmp_path) as op, connected(broker, "db1", tmp_path) as host:
        await host.follow(["tapster/#"])
        for topic in [OTHER.desired("vm1"), OTHER.status("vm1"), OTHER.agent, OWN.operator("x", "replies"), *own]:
            await op.deliver(topic, b"x", retain=True)
        seen: list[str] = []
        async with asyncio.timeout(5):
            while len(seen) < len(own):
                seen += [message.topic for message in await host.batch()]
        assert seen == own
