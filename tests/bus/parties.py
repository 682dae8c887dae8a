"""The agent side and the outside of a bus, for tests of what is between them."""

import asyncio
import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from agent.bus.connection import Connection
from agent.bus.message import Message
from agent.bus.session import BusSession
from agent.bus.topics import Topics
from agent.setting_sections import BrokerSettings
from tests.broker import PATIENCE, Broker

TOPICS = Topics("lab", "db1")


def settings(broker: Broker, **changes: object) -> BrokerSettings:
    values = {
        "host": broker.host,
        "port": broker.port,
        "reconnect_min": 0.05,
        "reconnect_max": 0.3,
        "connect_timeout": 1,
        "will_delay": 0,
    }
    return BrokerSettings.model_validate({**values, **changes})


class Agent:
    """A session whose handlers write down what they got, and do as told."""

    def __init__(
        self, broker: BrokerSettings, *, groups: Sequence[str] = (), room: int = 100, spool: Path | None = None
    ) -> None:
        self.name = secrets.token_hex(4)
        self.scratch = Path(tempfile.gettempdir()) / f"tapster-{self.name}.jsonl"
        self.documents: list[Message] = []
        self.batches = 0
        self.synced = 0
        self.at_sync: set[bytes] = set()
        self.fail: Callable[[], bool] = lambda: False
        self.gate = asyncio.Event()
        self.gate.set()
        self.session = BusSession(
            broker=broker,
            topics=TOPICS,
            groups=groups,
            birth=self._birth,
            on_documents=self._take,
            on_command=self._answer,
            on_synced=self._sync,
            spool=spool or self.scratch,
            room=room,
        )

    def _birth(self, state: Literal["online", "offline", "lost"]) -> bytes:
        return json.dumps({"state": state, "session": self.name}).encode()

    async def _take(self, messages: Sequence[Message]) -> None:
        self.batches += 1
        self.documents += messages
        await self.gate.wait()
        if self.fail():
            raise OSError("no space left on device")

    async def _answer(self, command: Message) -> bytes | None:
        if command.payload == b"fail":
            raise RuntimeError("told to")
        return command.topic.encode() + b" " + command.payload

    async def _sync(self) -> None:
        self.synced += 1
        self.at_sync = set(self.payloads)

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.documents]


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[Agent]:
    task = asyncio.create_task(agent.session.run())
    try:
        yield agent
    finally:
        task.cancel()
        await asyncio.wait((task,), timeout=PATIENCE)
        agent.scratch.unlink(missing_ok=True)
        assert task.cancelled(), task


@asynccontextmanager
async def outsider(broker: Broker, *filters: str, name: str = "outsider") -> AsyncIterator[Connection]:
    async with Connection(settings(broker), client=name, user=name) as connection:
        if filters:
            await connection.follow(filters)
        yield connection


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - many unlike conditions
            await asyncio.sleep(0.01)


async def receive(connection: Connection, count: int) -> list[tuple[str, bytes]]:
    got: list[tuple[str, bytes]] = []
    async with asyncio.timeout(PATIENCE):
        while len(got) < count:
            batch = await connection.batch()
            connection.acknowledge(batch)
            got += [(message.topic, bytes(message.payload)) for message in batch]
    return got


async def retained(broker: Broker, topic: str) -> bytes:
    """What the broker keeps there, or what comes there next if it has nothing yet."""
    async with outsider(broker, topic, name="reader") as connection:
        return (await receive(connection, 1))[0][1]
