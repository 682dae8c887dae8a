"""A broker of its own for each test, with settings for it, and a way to put something on it."""

import asyncio
from collections.abc import Iterator

import pytest

from agent.bus.operator import operator
from agent.setting_sections import BrokerSettings
from agent.settings import Settings
from tests.broker import Broker, running_broker
from tests.cli_operator.fake_host import Put


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    with running_broker() as broker:
        yield broker


@pytest.fixture
def settings(own_broker: Broker) -> Settings:
    return Settings(host="here", fleet="lab", broker=BrokerSettings(host=own_broker.host, port=own_broker.port))


@pytest.fixture
def put(settings: Settings) -> Put:
    """Publish something retained."""

    async def publish(topic: str, payload: bytes) -> None:
        async with operator(settings) as op:
            await op.publish(topic, payload)

    return lambda topic, payload: asyncio.run(publish(topic, payload))
