"""Brings what waits in the outbox to the broker, over whatever connection there is."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import aiomqtt

from agent.bus.connection import Connection, DeniedError, Sent
from agent.bus.denials import Denials
from agent.bus.outbox import Outbox, Publication

FLUSH_SECONDS = 1.0
"""Bound for the last words: what still waits to be published when the session is left."""


class Sender:
    """Publishes, and leaves alone what the broker refuses.

    Attributes:
        on_acknowledged: Told how many seconds the broker took to acknowledge a message, once a batch.
    """

    def __init__(self, outbox: Outbox, denials: Denials) -> None:
        self._outbox = outbox
        self._denials = denials
        self.on_acknowledged: Callable[[float], None] = lambda _seconds: None

    async def run(self, connection: Connection) -> NoReturn:
        """Publish what there is and what comes, until the connection ends."""
        while True:
            await self._publish_batch(connection)

    async def flush(self, connection: Connection) -> None:
        """Publish what there is, as far as that is possible in a short time."""
        with suppress(TimeoutError, aiomqtt.MqttError, ExceptionGroup):
            async with asyncio.timeout(FLUSH_SECONDS):
                await connection.settled()  # the outbox gives a batch again that was left under way
                while self._outbox:
                    self._outbox.hurry()
                    await self._publish_batch(connection)

    async def send(self, connection: Connection, publication: Publication) -> None:
        """Publish one message past the outbox, and wait for the broker's verdict."""
        if sent := self._begun(connection, publication):
            await self._ended(connection, sent)

    async def _publish_batch(self, connection: Connection) -> None:
        batch = await self._outbox.batch(connection.window)
        under_way = [sent for publication in batch if (sent := self._begun(connection, publication))]
        began = time.monotonic()
        for number, sent in enumerate(under_way):
            await self._ended(connection, sent)
            if number == 0:
                self.on_acknowledged(time.monotonic() - began)
        self._outbox.delivered()

    def _begun(self, connection: Connection, publication: Publication) -> Sent | None:
        topic = publication.topic
        if self._denials.hold(topic):
            return None
        try:
            return connection.send(topic, publication.payload, retain=publication.retain)
        except DeniedError as error:
            self._denials.note(topic, error)
            return None

    async def _ended(self, connection: Connection, sent: Sent) -> None:
        try:
            await connection.verdict(sent)
        except DeniedError as error:
            self._denials.note(sent.topic, error)
