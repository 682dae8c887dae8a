"""The host's session with the broker: it stays, through restarts of either side, until it is cancelled."""

import asyncio
import json
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NoReturn

import aiomqtt
import structlog
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes

from agent.bus.connection import Connection, DeniedError, TakenOverError, taken_over
from agent.bus.denials import Denials
from agent.bus.explain import explain
from agent.bus.message import Message
from agent.bus.outbox import Outbox, Publication
from agent.bus.properties import packet_properties
from agent.bus.sender import Sender
from agent.bus.spool import ROOM, Spool
from agent.bus.topics import (
    EVERY_HOST,
    AgentTopic,
    CommandTopic,
    DesiredTopic,
    Scope,
    SyncTopic,
    Topic,
    TopicError,
    Topics,
    TrustTopic,
)
from agent.setting_sections import BrokerSettings

__all__ = ["BusSession", "Message"]

log: structlog.stdlib.BoundLogger = structlog.get_logger()

COMMANDS_AT_ONCE = 8
"""Requests that are answered at the same time; the rest wait."""

FAREWELL_SECONDS = 1.0
"""Bound for the last word, that the host is offline."""

_dice = random.SystemRandom()


class HandlerError(Exception):
    """What was received could not be taken in: it stays unacknowledged, and the broker delivers it again."""


class BusSession:
    """Brings documents and requests to the agent, and its status and events to the bus.

    A batch of documents is acknowledged after `on_documents` has returned, so what it made durable is never
    asked for again, and what it did not comes again: every document arrives at least once, in order. If a handler
    raises, the session is left and resumed after a pause that grows, so that a full disk makes no hot loop.

    Args:
        broker: Where the broker is, and how long to wait for what.
        topics: The fleet's and the host's names; the host's is the client id.
        groups: Groups whose documents count for this host, besides the built-in `all`.
        birth: Makes the payload for the agent topic: JSON with `state` and the process's `session`.
        on_documents: Takes desired documents and trust statements, in order of arrival. The guest in the topic may be
            invalid; an empty payload withdraws.
        on_command: Answers a request; None is no reply. Several run at a time.
        on_synced: Called each time everything retained has arrived, after `on_documents` had all of it.
        spool: The file for events that the broker does not take for now; it and its folder are the agent's own.
        room: Events kept there; with more, the oldest are dropped.
    """

    def __init__(
        self,
        *,
        broker: BrokerSettings,
        topics: Topics,
        groups: Sequence[str],
        birth: Callable[[Literal["online", "offline", "lost"]], bytes],
        on_documents: Callable[[Sequence[Message]], Awaitable[None]],
        on_command: Callable[[Message], Awaitable[bytes | None]],
        on_synced: Callable[[], Awaitable[None]],
        spool: Path,
        room: int = ROOM,
    ) -> None:
        self._broker = broker
        self._topics = topics
        self._scopes = {
            Scope("host", topics.host): topics.desired_filter,
            **{Scope("group", group): topics.group_filter(group) for group in dict.fromkeys((EVERY_HOST, *groups))},
        }
        # Statements first, so that documents meet the keys that are in force now.
        self._filters = [topics.trust, topics.agent, *self._scopes.values(), topics.command_filter, topics.sync]
        self._birth = birth
        self._on_documents = on_documents
        self._on_command = on_command
        self._on_synced = on_synced
        self._outbox = Outbox(room=room)
        self._spool = Spool(spool, self._outbox)
        self._denials = Denials()
        self._sender = Sender(self._outbox, self._denials)
        self._answering = asyncio.Semaphore(COMMANDS_AT_ONCE)
        self._connection: Connection | None = None
        self._nonce: bytes | None = None
        self._last_sync: datetime | None = None
        self._trouble: str | None = None
        self._known = False
        self._settled = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    @property
    def last_sync(self) -> datetime | None:
        """When everything retained had last arrived; None if never since the start."""
        return self._last_sync

    @property
    def trouble(self) -> str | None:
        """What is wrong between agent and broker, as a sentence that says what to do; None if nothing is known."""
        return self._denials.sentence or self._trouble

    @property
    def unsent(self) -> int:
        """Messages that wait for a connection, or for the broker's acknowledgement."""
        return len(self._outbox)

    @property
    def dropped_events(self) -> int:
        """Events that were dropped because the broker was away for too long."""
        return self._outbox.dropped

    def tell_lag(self, to: Callable[[float], None]) -> None:
        """Tell somebody how many seconds the broker takes to acknowledge a message, once a batch."""
        self._sender.on_acknowledged = to

    def publish_retained(self, topic: str, payload: bytes) -> None:
        """Publish a state, as soon as there is a connection. Only the latest on each topic counts."""
        self._outbox.retain(topic, payload)

    def publish_event(self, topic: str, payload: bytes) -> None:
        """Publish an event, in order, as soon as there is a connection."""
        self._outbox.append(topic, payload)

    async def resync(self) -> None:
        """Have everything retained sent again; `on_synced` is called when it has arrived.

        Without a connection nothing is done: the next one begins with just that.
        """
        if self._connection is not None:
            await self._ask(self._connection)

    async def announce(self) -> None:
        """Publish the birth message anew, as what it says has changed. A connection that is to come begins with it."""
        if self._connection is not None and self._settled.is_set():
            with suppress(aiomqtt.MqttError):
                await self._say(self._connection, "online")

    async def load(self) -> None:
        """Take over the events that an earlier run could not deliver, before any other is published."""
        await self._spool.load()

    async def run(self) -> NoReturn:
        """Hold the session for ever. Cancel it to say farewell and leave, within a few seconds."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._spool.run())
                await self._hold()
        finally:
            await self._spool.close()

    async def _hold(self) -> NoReturn:
        attempt = 0
        while True:
            began = time.monotonic()
            cause = await self._attempt()
            # A session that did not last does not reset the backoff: neither a handler that fails each time nor two
            # agents that take the session from each other may do so in a hot loop.
            lasted = time.monotonic() - began > self._broker.reconnect_max
            attempt = 0 if lasted else attempt + 1
            pause = self._pause(attempt, cause)
            self._complain(_sentence(cause, self._broker, self._topics.host), next_attempt_seconds=round(pause, 1))
            await asyncio.sleep(pause)

    async def _attempt(self) -> BaseException:
        """Serve until something goes wrong, and return what.

        In a task of its own, because a task group that is cancelled while its tasks fail reports the failures and
        forgets the cancellation; here the cancellation is always seen.
        """
        serving = asyncio.create_task(self._failure())
        try:
            await asyncio.wait((serving,))
        finally:
            serving.cancel()
            await asyncio.wait((serving,))
        return asyncio.CancelledError() if serving.cancelled() else serving.result()

    async def _failure(self) -> BaseException:
        try:
            await self._serve()
        except Exception as error:
            cause = _first(error)
            if not isinstance(cause, HandlerError | TakenOverError | aiomqtt.MqttError | OSError):
                log.exception("the bus session failed")
            return cause

    async def _serve(self) -> NoReturn:
        self._settled = asyncio.Event()
        async with Connection(
            self._broker,
            client=self._topics.host,
            user=self._topics.host,
            resume=True,
            expiry=self._broker.session_expiry,
            will=aiomqtt.Will(
                self._topics.agent,
                self._birth("lost"),
                qos=1,
                retain=True,
                properties=packet_properties(PacketTypes.WILLMESSAGE, WillDelayInterval=self._broker.will_delay),
            ),
        ) as connection:
            self._connection = connection
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._read(connection, tasks))
                    await self._ask(connection)
                    await self._settled.wait()
                    await self._say(connection, "online")
                    self._known = True
                    await self._sender.run(connection)
            except asyncio.CancelledError:
                await self._farewell(connection)
                raise
            except BaseExceptionGroup as errors:
                if isinstance(_first(errors), HandlerError):
                    # Why, for one: while the handler fails no session gets to publish.
                    await self._sender.flush(connection)
                raise
            finally:
                self._connection = None

    async def _say(self, connection: Connection, state: Literal["online", "offline"]) -> None:
        await self._sender.send(connection, Publication(self._topics.agent, self._birth(state), retain=True))

    async def _ask(self, connection: Connection) -> None:
        """Subscribe, and send the nonce that comes back behind everything retained."""
        self._nonce = secrets.token_hex(8).encode()
        self._denials.note_filters(await connection.follow_granted(self._filters))
        await self._send_nonce(connection)

    async def _send_nonce(self, connection: Connection) -> None:
        await self._sender.send(connection, Publication(self._topics.sync, self._nonce or b"", retain=False))

    async def _read(self, connection: Connection, tasks: asyncio.TaskGroup) -> NoReturn:
        while True:
            try:
                async with asyncio.timeout(self._broker.connect_timeout if self._nonce else None):
                    batch = await connection.batch()
            except TimeoutError:
                self._complain(
                    f"what was sent to {self._topics.sync} does not come back, so it is not known whether every "
                    "document has arrived; let the broker's access list allow this host to read and write that "
                    "topic, and set no limit to its queue (mosquitto: max_queued_messages 0)"
                )
                self._settled.set()
                tasks.create_task(self._send_nonce(connection))
            else:
                await self._take(connection, batch, tasks)

    async def _take(self, connection: Connection, batch: Sequence[MQTTMessage], tasks: asyncio.TaskGroup) -> None:
        messages = [Message.received(raw) for raw in batch]
        documents, commands, others = list[Message](), list[Message](), list[tuple[Message, Topic | None]]()
        for message in messages:
            match self._parse(message.topic):
                case DesiredTopic(scope) if scope in self._scopes:
                    documents.append(message)
                case TrustTopic():
                    documents.append(message)
                case CommandTopic():
                    commands.append(message)
                case topic:
                    others.append((message, topic))
        if documents:
            await self._hand_over(self._on_documents(documents))
        connection.acknowledge(batch)
        for message, topic in others:
            await self._note(connection, message, topic)
        if any(message.topic == self._topics.sync and message.payload == self._nonce for message in messages):
            self._nonce, self._trouble, self._last_sync = None, None, datetime.now(UTC)
            log.info("everything retained has arrived", broker=f"{self._broker.host}:{self._broker.port}")
            await self._hand_over(self._on_synced())
            self._settled.set()
        for command in commands:
            tasks.create_task(self._answer(connection, command))

    async def _note(self, connection: Connection, message: Message, topic: Topic | None) -> None:
        match topic:
            case SyncTopic():
                return
            case AgentTopic():
                if message.retain:
                    await self._yield_to_another(connection, message.payload)
            case DesiredTopic(Scope("group", group)):
                log.info("left a group that older settings had joined", group=group)
                await connection.leave(self._topics.group_filter(group))
            case _:
                log.warning("ignored a message that is not for this host", topic=message.topic)

    async def _yield_to_another(self, connection: Connection, birth: bytes) -> None:
        """Leave if the agent topic shows that another agent took this one's place while it was away.

        mosquitto 2.0 closes the older of two connections without the reason that MQTT v5 has for it. Who leaves
        says "lost" first, so that its next attempt sees whether the other one has come back since.
        """
        if self._known and _online_session(birth) not in {None, _online_session(self._birth("online"))}:
            await self._sender.send(connection, Publication(self._topics.agent, self._birth("lost"), retain=True))
            raise TakenOverError

    def _parse(self, topic: str) -> Topic | None:
        with suppress(TopicError):
            return self._topics.parse(topic)
        return None

    async def _hand_over(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:
            log.exception("what was received could not be taken in")
            raise HandlerError(str(error) or type(error).__name__) from error

    async def _answer(self, connection: Connection, command: Message) -> None:
        async with self._answering:
            try:
                reply = await self._on_command(command)
            except Exception:
                log.exception("a request failed, and its sender gets no reply", topic=command.topic)
                return
            if reply is None or command.response_topic is None:
                return
            try:
                properties = packet_properties(PacketTypes.PUBLISH, CorrelationData=command.correlation)
                await connection.deliver(command.response_topic, reply, properties=properties)
            except DeniedError as error:
                log.warning("a reply could not be sent", topic=command.topic, error=str(error))

    async def _farewell(self, connection: Connection) -> None:
        await self._sender.flush(connection)
        with suppress(TimeoutError, aiomqtt.MqttError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._say(connection, "offline")
        log.info("left the bus")

    def _pause(self, attempt: int, error: BaseException) -> float:
        """Seconds to wait, with full jitter, so that a fleet does not come back all at once."""
        longest = self._broker.reconnect_max
        if taken_over(error):
            return _dice.uniform(longest / 2, longest)
        return _dice.uniform(0, min(longest, self._broker.reconnect_min * 2 ** min(attempt, 32)))

    def _complain(self, sentence: str, **fields: object) -> None:
        """Say what is wrong, once; `trouble` goes on to say it until everything retained has arrived."""
        report = log.warning if sentence != self._trouble else log.debug
        report(sentence, **fields)
        self._trouble = sentence


def _online_session(birth: bytes) -> str | None:
    """The session that says it is online in a birth message; None if none does."""
    try:
        state = json.loads(birth)
    except ValueError:
        return None
    return state.get("session") if isinstance(state, dict) and state.get("state") == "online" else None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _sentence(error: BaseException, broker: BrokerSettings, client: str) -> str:
    if isinstance(error, HandlerError):
        return f"documents could not be taken in, so the broker is asked for them again: {error}"
    return explain(error, broker, client)
