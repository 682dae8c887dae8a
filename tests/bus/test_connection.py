"""A connection by itself, with a real broker at the other end."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any

import aiomqtt
import pytest

from agent.bus.connection import BESIDE, Connection, Sent
from agent.bus.denials import Denials
from agent.bus.outbox import Outbox
from agent.bus.sender import Sender
from agent.setting_sections import BrokerSettings
from tests.broker import Broker, running_broker


async def test_a_publish_whose_verdict_never_comes_ends_with_the_connection() -> None:
    with running_broker() as broker:
        async with Connection(BrokerSettings(port=broker.port), client="c", user="c") as connection:
            broker.signal(SIGSTOP)
            asyncio.get_running_loop().call_later(0.2, broker.signal, SIGKILL)
            with pytest.raises(aiomqtt.MqttError):
                await connection.deliver("a/topic", b"a payload")


@pytest.mark.parametrize(
    "ask", [lambda one: one.follow(["a/#"]), lambda one: one.leave("a/#")], ids=["follow", "leave"]
)
async def test_an_answer_that_never_comes_ends_with_the_connection(
    ask: Callable[[Connection], Coroutine[Any, Any, None]],
) -> None:
    with running_broker() as broker:
        async with Connection(BrokerSettings(port=broker.port), client="c", user="c") as connection:
            broker.signal(SIGSTOP)
            asyncio.get_running_loop().call_later(0.2, broker.signal, SIGKILL)
            async with asyncio.timeout(60):
                with pytest.raises(aiomqtt.MqttError):
                    await ask(connection)


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


class TakesFew(Broker):
    """A mosquitto that announces how many publications it takes at once."""

    def configuration(self) -> str:
        return super().configuration().replace("max_inflight_messages 0", "max_inflight_messages 20")


async def test_more_than_the_broker_takes_at_once_is_never_under_way(tmp_path: Path) -> None:
    class Counting(Connection):
        sent = 0

        def send(self, topic: str, payload: bytes, **options: Any) -> Sent:
            self.sent += 1
            return super().send(topic, payload, **options)

    broker, outbox = TakesFew(tmp_path), Outbox(room=1000)
    sender = Sender(outbox, Denials())
    broker.start()
    try:
        async with Counting(BrokerSettings(port=broker.port), client="c", user="c") as connection:
            assert connection.window == 20 - BESIDE
            broker.signal(SIGSTOP)
            for number in range(100):
                outbox.append("an/event", b"%d" % number)
            running = asyncio.create_task(sender.run(connection))
            async with asyncio.timeout(60):
                while connection.sent < connection.window:  # noqa: ASYNC110 - a count, and no event
                    await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.wait((running,))
            await sender.flush(connection)
            assert connection.sent == connection.window, "the last words wait for what is under way"
            broker.signal(SIGCONT)
            while outbox:
                await sender.flush(connection)
    finally:
        broker.signal(SIGCONT)
        broker.stop()
