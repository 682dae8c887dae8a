"""An operator's connection: look at what is retained, publish, ask hosts, follow what changes.

It has a channel of its own for each of two things: `<prefix>/operators/<client id>/sync` for the nonce that comes
back behind everything retained, and `…/replies` for answers. Nothing on either is retained.
"""

import asyncio
import math
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

import aiomqtt
from paho.mqtt.packettypes import PacketTypes

from agent.bus.connection import Connection, DeniedError, UnansweredError
from agent.bus.explain import explain
from agent.bus.message import Message
from agent.bus.properties import packet_properties
from agent.bus.topics import FleetTopics, Verb
from agent.settings import Settings

QUIET_SECONDS = 2.0
"""Where the nonce does not come back, what is retained counts as complete after this long without a message."""


class BusError(Exception):
    """The bus can't be used. The message says why and what to do."""


class Operator:
    """What an operator does on the bus. One thing at a time: all of it reads from the same connection.

    Attributes:
        topics: The fleet's topics.
        complete: False once the broker kept the nonce back, so that something retained may be missing.
        overhear: Called once with each message, in order, whoever reads it and whatever becomes of it then.
    """

    def __init__(self, connection: Connection, topics: FleetTopics, client: str) -> None:
        self.topics = topics
        self.complete = True
        self.overhear: Callable[[Message], None] = lambda _: None
        self._connection = connection
        self._sync = topics.operator(client, "sync")
        self._replies = topics.operator(client, "replies")
        self._pending: deque[Message] = deque()

    async def retained(self, *filters: str) -> list[Message]:
        """Everything retained under the filters, each topic once and as it is now; `message` goes on with changes."""
        found = {message.topic: message async for message in self.arriving(*filters)}
        return [message for message in found.values() if message.payload]

    async def arriving(self, *filters: str) -> AsyncIterator[Message]:
        """As `retained`, each message as it arrives: changes meanwhile, too, of which an empty one takes away."""
        nonce = secrets.token_hex(8).encode()
        await self._connection.follow([*filters, self._sync])
        await self._connection.deliver(self._sync, nonce)
        while (message := await self.message(QUIET_SECONDS)) is not None:
            if message.topic == self._sync and message.payload == nonce:
                return
            yield message
        self.complete = False

    async def catch_up(self) -> None:
        """Overhear all that the broker has for us now; `message` gives it afterwards.

        Of a broker that keeps the nonce back only that is heard that `message` is waited for.
        """
        if self.complete:
            self._pending.extendleft(reversed([message async for message in self.arriving()]))

    async def message(self, seconds: float | None = None) -> Message | None:
        """The next message, or None if there is none for so many seconds."""
        if not self._pending:
            try:
                async with asyncio.timeout(seconds):
                    batch = await self._connection.batch()
            except TimeoutError:
                return None
            self._connection.acknowledge(batch)
            self._pending.extend(map(Message.received, batch))
            for message in self._pending:
                self.overhear(message)
        return self._pending.popleft()

    async def publish(self, topic: str, payload: bytes) -> None:
        """Publish, retained; the broker has it when this returns."""
        await self._connection.deliver(topic, payload, retain=True)

    async def publish_all(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Publish any number, retained, as many at once as the broker takes; it has them all when this returns."""
        await self._in_window(self.publish(topic, payload) for topic, payload in messages)

    async def ask(
        self,
        hosts: Iterable[str],
        verb: Verb,
        payload: bytes = b"",
        *,
        seconds: float,
        properties: Mapping[str, str] | None = None,
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Send a request to hosts, and yield each host's reply as it comes; the silent ones are left out.

        Args:
            hosts: Whom to ask.
            verb: What to ask.
            payload: The request's payload.
            seconds: How long to wait for replies; a host that connects later never sees the request.
            properties: User properties of the request.
        """
        requests = dict.fromkeys(hosts, payload)
        async for answer in self.ask_each(requests, verb, seconds=seconds, properties=properties):
            yield answer

    async def ask_each(
        self, requests: Mapping[str, bytes], verb: Verb, *, seconds: float, properties: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[str, bytes]]:
        """As `ask`, with a payload of its own for each host."""
        await self._connection.follow([self._replies])
        waiting = {secrets.token_bytes(8): host for host in requests}
        await self._in_window(
            self._connection.deliver(
                self.topics.of(host).command(verb),
                requests[host],
                properties=packet_properties(
                    PacketTypes.PUBLISH,
                    ResponseTopic=self._replies,
                    CorrelationData=correlation,
                    MessageExpiryInterval=math.ceil(seconds),
                    UserProperty=list((properties or {}).items()),
                ),
            )
            for correlation, host in waiting.items()
        )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while waiting and (message := await self.message(deadline - loop.time())) is not None:
            host = waiting.pop(message.correlation or b"", "")
            if host and message.topic == self._replies:
                yield host, message.payload

    async def _in_window(self, deliveries: Iterable[Awaitable[None]]) -> None:
        """Have as many under way at once as the broker takes; the first that fails ends them all."""
        queue = iter(deliveries)

        async def work() -> None:
            for delivery in queue:
                await delivery

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._connection.window):
                    group.create_task(work())
        except* (DeniedError, aiomqtt.MqttError) as errors:
            failed = errors.exceptions[0]
        else:
            return
        raise failed


@asynccontextmanager
async def operator(settings: Settings, *, will: aiomqtt.Will | None = None) -> AsyncIterator[Operator]:
    """Connect as an operator, with the user and the certificates of the settings.

    Args:
        settings: Which broker, which fleet, and as whom.
        will: What the broker publishes when the connection is lost.

    Raises:
        BusError: The broker can't be reached, refuses, or went away inside the block.
    """
    broker = settings.broker
    client = f"operator-{secrets.token_hex(6)}"
    remedy = "start one with `tapster broker --dev`, or set broker.host and broker.port"
    try:
        connection = Connection(broker, client=client, user=settings.host, will=will)
    except OSError as error:
        raise BusError(explain(error, broker, client)) from error
    try:
        async with connection:
            yield Operator(connection, FleetTopics(settings.fleet), client)
    except DeniedError as error:
        raise BusError(str(error)) from error
    except (aiomqtt.MqttCodeError, UnansweredError) as error:
        raise BusError(explain(error, broker, client)) from error
    except aiomqtt.MqttError as error:
        raise BusError(f"{explain(error, broker, client)}; {remedy}") from error
