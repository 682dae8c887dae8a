"""A broker's answers to a message, in every form that they may have on the wire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiomqtt
import pytest

from agent.bus.connection import Connection, DeniedError
from agent.setting_sections import BrokerSettings

CONNACK = b"\x20\x03\x00\x00\x00"
CONNECT, PUBLISH = 0x10, 0x30


@asynccontextmanager
async def connected_to_broker_that_says(*answers: bytes) -> AsyncIterator[Connection]:
    """One that answers one message after the other so; # stands for the message's number."""
    waiting = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.read(1):
            length = (await reader.readexactly(1))[0]  # of packets below 128 bytes
            packet = await reader.readexactly(length)
            if head[0] & 0xF0 == CONNECT:
                writer.write(CONNACK)
            elif head[0] & 0xF0 == PUBLISH:
                topic_end = 2 + int.from_bytes(packet[:2], "big")
                answer = waiting.pop(0).replace(b"#", packet[topic_end : topic_end + 2])
                writer.write(bytes([0x40, len(answer)]) + answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Connection(BrokerSettings(port=port), client="c", user="c") as connection:
            yield connection


async def test_a_message_has_arrived_however_briefly_that_is_said() -> None:
    answers = (b"#", b"#\x00", b"#\x00\x00", b"#\x10", b"#\x10\x00", b"#\x10\x04\x1f\x00\x01?")
    async with connected_to_broker_that_says(*answers) as connection:
        for _ in answers:
            await connection.deliver("a/topic", b"a payload")


@pytest.mark.parametrize("answer", [b"#\x87", b"#\x87\x00", b"#\x97\x00"])
async def test_a_message_that_was_refused_has_not_arrived(answer: bytes) -> None:
    async with connected_to_broker_that_says(answer, b"#") as connection:
        with pytest.raises(DeniedError):
            await connection.deliver("a/topic", b"a payload")
        await connection.deliver("a/topic", b"another payload")


async def test_an_answer_to_another_message_is_none_to_this_one() -> None:
    async with connected_to_broker_that_says(b"\x7f\xff", b"#") as connection:
        unanswered = connection.send("a/topic", b"a payload")
        await connection.deliver("a/topic", b"another payload")
        assert not unanswered.verdict.done()


@pytest.mark.parametrize("answer", [b"", b"\x00", b"#\x42", b"#\x10\x05"])
async def test_an_answer_that_can_not_be_read_ends_the_connection(answer: bytes) -> None:
    async with connected_to_broker_that_says(answer) as connection:
        with pytest.raises(aiomqtt.MqttError):
            await connection.deliver("a/topic", b"a payload")
