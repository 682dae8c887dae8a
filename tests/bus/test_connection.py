"""A connection by itself, with a real broker at the other end."""

import asyncio
from signal import SIGCONT, SIGKILL, SIGSTOP

import aiomqtt
import pytest

from agent.bus.connection import Connection
from agent.setting_sections import BrokerSettings
from tests.broker import running_broker


async def test_a_publish_whose_verdict_never_comes_ends_with_the_connection() -> None:
    with running_broker() as broker:
        async with Connection(BrokerSettings(port=broker.port), client="c", user="c") as connection:
            broker.signal(SIGSTOP)
            asyncio.get_running_loop().call_later(0.2, broker.signal, SIGKILL)
            with pytest.raises(aiomqtt.MqttError):
                await connection.deliver("a/topic", b"a payload")


async def test_what_the_socket_does_not_take_is_sent_when_it_takes_more() -> None:
    with running_broker() as broker:
        async with Connection(BrokerSettings(port=broker.port), client="c", user="c") as connection:
            broker.signal(SIGSTOP)
            sent = [connection.send(f"topic/{number}", bytes(1 << 16)) for number in range(connection.window)]
            await asyncio.sleep(0.1)  # what is sent by then fills the kernel's buffers
            broker.signal(SIGCONT)
            async with asyncio.timeout(60):
                for one in sent:
                    await connection.verdict(one)
