"""One connection to the broker: aiomqtt, with what this bus needs and aiomqtt keeps to itself.

That is: acknowledging a message when its work is done instead of when it arrives, the broker's verdict on each
publication, the limits that the broker announces, and a socket that is surely closed.
"""

import asyncio
import logging
import socket
import threading
from collections import deque
from collections.abc import Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import aiomqtt
from aiomqtt.types import PahoSocket
from paho.mqtt.client import MQTT_ERR_SUCCESS, Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.bus.buffered_socket import BufferedSocket
from agent.bus.properties import packet_properties
from agent.bus.tls import tls_context
from agent.setting_sections import BrokerSettings
from reconcilers.opener.ask import opened

BATCH = 1000
"""Messages handed over at once: enough that one fsync serves many, few enough that work is seen to progress."""

WINDOW = 100
"""Publications under way at once, unless the broker announces that it takes fewer."""

BESIDE = 10
"""So many more may be under way beside those: answers to commands, a birth, a nonce. A broker that announces how many
it takes (MQTT v5, section 3.2.2.3.3) closes the connection of who sends more."""

PACKET_OVERHEAD = 256
"""Bytes of a PUBLISH besides topic and payload, generously: header, lengths and the properties that we send."""

LATE_PING = 0.1
"""How much later than `keepalive` a ping may go out, in parts of it. The broker waits for half as long again."""

OPENER_SECONDS = 10.0
"""What a connection may take besides the attempts: a process that opens it starts first."""

SESSION_TAKEN_OVER = 0x8E

_quiet = logging.getLogger("agent.bus.client")
_quiet.setLevel(logging.CRITICAL)  # what the library logs comes back as an exception, and is reported with its remedy


T = TypeVar("T")


class DeniedError(Exception):
    """The broker refused one publication or subscription; the connection goes on."""


class UnansweredError(aiomqtt.MqttError):
    """The broker took the connection, and closed it before it said anything."""


class TakenOverError(Exception):
    """Another client with the same id has been here since, and may still be."""


class Sent(NamedTuple):
    """A message that is on its way: its topic, the packet's number, and the verdict to come."""

    topic: str
    mid: int
    verdict: "asyncio.Future[ReasonCode]"


class Connection(aiomqtt.Client):
    """A connection attempt and what comes of it; used once, as an async context manager.

    Leaving the context because of an error asks the broker to publish the will; leaving it otherwise discards it.

    Args:
        broker: Where to connect, and how.
        client: Client id.
        user: User name where broker.username is not set; sent only together with a password.
        resume: Go on with the session that the broker may have kept (MQTT v5, section 3.1.2.4).
        expiry: Seconds for which the broker keeps the session after the connection ends.
        will: What the broker publishes when the connection is lost.

    Raises:
        OSError: The password file or the certificates can't be read.
        aiomqtt.MqttError: On entering: the broker can't be reached, or refused.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        *,
        client: str,
        user: str,
        resume: bool = False,
        expiry: int = 0,
        will: aiomqtt.Will | None = None,
    ) -> None:
        password = None
        if broker.password_file is not None:
            password = broker.password_file.read_text(encoding="utf-8").strip()
        super().__init__(
            broker.host,
            broker.port,
            identifier=client,
            username=None if password is None else broker.username or user,
            password=password,
            protocol=aiomqtt.ProtocolVersion.V5,
            will=will,
            logger=_quiet,
            timeout=broker.connect_timeout,
            keepalive=broker.keepalive,
            clean_start=not resume,
            # Who sends much keeps to `window`. A bound of paho's own has it go through all that is under way each time
            # that a message is acknowledged, and it does not know the broker's.
            max_inflight_messages=0,
            properties=packet_properties(PacketTypes.CONNECT, SessionExpiryInterval=expiry),
            tls_context=tls_context(broker.tls),
            # Otherwise a short message waits until the broker's host has acknowledged the last one: 40 ms on Linux.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        )
        self._client.disable_logger()  # paho would ask it several times for each message
        self._client.connect_timeout = broker.connect_timeout
        self._client._create_socket_connection = partial(_connected, broker)  # type: ignore[method-assign]  # noqa: SLF001 - no hook either
        self._client.manual_ack_set(True)
        self._thread = threading.get_ident()
        self._inbox: deque[MQTTMessage] = deque()
        self._news = asyncio.Event()
        self._verdicts: dict[int, asyncio.Future[ReasonCode]] = {}
        self.window = WINDOW
        self._packet_limit: int | None = None
        self._socket: BufferedSocket | None = None
        self._writing = False
        self._waiting = False
        self._broker = broker

    async def __aenter__(self) -> Self:
        try:
            await super().__aenter__()
        except BaseException:
            # aiomqtt leaves the socket open, and a broker that answers late would let it take over the session. At its
            # end aiomqtt asks this future for an error, which one that was cancelled does not take.
            self._connected = self._loop.create_future()
            self._client.disconnect()
            raise
        if isinstance(opened := self._client.socket(), socket.socket):
            self._client._sock = self._socket = BufferedSocket(opened)  # noqa: SLF001 - paho has no hook for it
        self._disconnected.add_done_callback(self._wake)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._disconnected.done():
            return
        will = isinstance(error, Exception)
        self._client.disconnect(
            ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message" if will else "Normal disconnection")
        )
        await asyncio.wait((self._disconnected,), timeout=self.timeout)

    async def batch(self) -> Sequence[MQTTMessage]:
        """Wait for messages and take those that have arrived, in order, at most `BATCH`. Cancelling loses none.

        Raises:
            aiomqtt.MqttError: The connection has ended, and every message before the end was taken.
        """
        while not self._inbox:
            if self._disconnected.done():
                raise self._disconnected.exception() or aiomqtt.MqttError("the connection was closed")
            self._news.clear()
            await self._news.wait()
        seen = 0
        while seen < len(self._inbox) < BATCH:  # each turn of the loop reads one packet, if there is one
            seen = len(self._inbox)
            await asyncio.sleep(0)
        return [self._inbox.popleft() for _ in range(min(len(self._inbox), BATCH))]

    def acknowledge(self, messages: Sequence[MQTTMessage]) -> None:
        """Tell the broker that it need not deliver these again, in the order of their arrival (section 4.6)."""
        for message in messages:
            if message.qos:
                self._client.ack(message.mid, message.qos)

    async def deliver(
        self, topic: str, payload: bytes, *, retain: bool = False, properties: Properties | None = None
    ) -> None:
        """Publish with QoS 1 and wait for the broker's verdict, which comes while there is a connection.

        Raises:
            DeniedError: The broker does not take it, and would not take it again.
            aiomqtt.MqttError: There is no connection, or it ended before the verdict.
        """
        await self.verdict(self.send(topic, payload, retain=retain, properties=properties))

    def send(self, topic: str, payload: bytes, *, retain: bool = False, properties: Properties | None = None) -> Sent:
        """Publish with QoS 1, behind everything sent before; many may be under way at once. Raises as `deliver`."""
        size = len(topic) + len(payload) + PACKET_OVERHEAD
        if self._packet_limit is not None and size > self._packet_limit:
            raise DeniedError(
                f"{topic}: {len(payload)} bytes are more than the broker takes in a packet, {self._packet_limit}; "
                "raise the broker's limit (mosquitto: max_packet_size)"
            )
        try:
            sent = self._client.publish(topic, payload, 1, retain, properties)
        except ValueError as error:
            raise DeniedError(f"{topic}: can't be published: {error}") from error
        if sent.rc != MQTT_ERR_SUCCESS:
            raise aiomqtt.MqttCodeError(sent.rc, f"could not publish on {topic}")
        verdict = self._verdicts[sent.mid] = self._loop.create_future()
        return Sent(topic, sent.mid, verdict)

    async def verdict(self, sent: Sent) -> None:
        """Wait for what the broker says to a message. Raises as `deliver`."""
        try:
            reason = await sent.verdict
        finally:
            self._verdicts.pop(sent.mid, None)
        if reason.is_failure:
            raise DeniedError(f"the broker refused a message on {sent.topic}: {reason}; check its access list")

    async def settled(self) -> None:
        """Wait until all that is under way has its verdict, or the connection has ended."""
        if under_way := list(self._verdicts.values()):
            await asyncio.wait(under_way)

    async def follow(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1; what is retained is sent, also for a filter that was subscribed to before.

        Raises:
            DeniedError: The broker refused one. That it did not is no proof: some grant all and deliver nothing.
            aiomqtt.MqttError: The connection has ended.
        """
        for error in (await self.follow_granted(filters)).values():
            raise error

    async def follow_granted(self, filters: Sequence[str]) -> dict[str, DeniedError]:
        """As `follow`, in one request; returns which filters were refused, and follows the others."""
        options = SubscribeOptions(qos=1)
        wanted = [(name, options) for name in filters]
        verdicts = await self._answered(self.subscribe(wanted, timeout=float("inf")))
        return {
            name: DeniedError(f"the broker refused the subscription to {name}: {verdict}; check its access list")
            for name, verdict in zip(filters, verdicts, strict=True)
            if isinstance(verdict, ReasonCode) and verdict.is_failure
        }

    async def leave(self, name: str) -> None:
        """Unsubscribe from a filter.

        Raises:
            aiomqtt.MqttError: The connection has ended.
        """
        await self._answered(self.unsubscribe(name, timeout=float("inf")))

    async def _answered(self, request: Coroutine[Any, Any, T]) -> T:
        """What the broker answers. aiomqtt goes on waiting for that when the connection has ended."""
        asking = asyncio.ensure_future(request)
        try:
            await asyncio.wait((asking, self._disconnected), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise self._disconnected.exception() or aiomqtt.MqttError("the connection was closed")
            return asking.result()
        finally:
            asking.cancel()

    async def _misc_loop(self) -> None:
        """Send pings, and notice when they get no answer. aiomqtt looks each second."""
        pause = max(1.0, self._broker.keepalive * LATE_PING)
        while self._client.loop_misc() == MQTT_ERR_SUCCESS:  # noqa: ASYNC110 - it only has a state to ask for
            await asyncio.sleep(pause)

    def _wake(self, ended: asyncio.Future[None]) -> None:
        why = ended.exception() or aiomqtt.MqttError("the connection was closed")
        for verdict in self._verdicts.values():
            if not verdict.done():
                verdict.set_exception(why)
                verdict.exception()  # seen: of many under way only the first is waited for then
        self._news.set()

    def _on_connect(
        self,
        client: Client,
        userdata: Any,
        flags: ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        self.window = max(1, min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW + BESIDE) - BESIDE))
        self._packet_limit = getattr(properties, "MaximumPacketSize", None)
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self,
        client: Client,
        userdata: Any,
        flags: DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        """Say so at once where it comes before the answer; aiomqtt would wait for that until time is up."""
        if threading.get_ident() == self._thread and not self._connected.done():
            self._connected.set_exception(UnansweredError("it closed the connection before it answered"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        del client, userdata
        self._inbox.append(message)
        self._news.set()

    def _on_socket_register_write(self, client: Client, userdata: Any, sock: PahoSocket) -> None:
        """Something is to be sent. Mostly the socket takes all of it, so the kernel is not asked first."""
        del client, userdata, sock
        if threading.get_ident() != self._thread:  # while it connects
            self._loop.call_soon_threadsafe(self._write)
        elif not self._writing:
            self._writing = True
            self._loop.call_soon(self._write)

    def _on_socket_unregister_write(self, client: Client, userdata: Any, sock: PahoSocket) -> None:
        """Nothing more is to be sent; `_write` knows that by itself."""

    def _write(self) -> None:
        """Have paho give all that it has, and send that together; what the socket does not take waits for it."""
        self._writing = False
        self._client.loop_write()
        descriptor = self._descriptor()
        if descriptor < 0:
            return
        if self._socket:
            self._socket.flush()
        if self._client.want_write() or (self._socket and self._socket.holds):
            self._waiting = True
            self._loop.add_writer(descriptor, self._write)
        elif self._waiting:
            self._waiting = False
            self._loop.remove_writer(descriptor)

    def _descriptor(self) -> int:
        """Of the socket; -1 once it is closed, when the number may be another file's."""
        opened = self._client.socket()
        return opened.fileno() if opened else -1

    def _on_socket_close(self, client: Client, userdata: Any, sock: PahoSocket) -> None:
        if sock.fileno() >= 0:
            self._loop.remove_writer(sock.fileno())
        super()._on_socket_close(client, userdata, sock)

    def _on_publish(
        self, client: Client, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        del client, userdata, properties
        verdict = self._verdicts.get(mid)
        if verdict is not None and not verdict.done():
            verdict.set_result(reason_code)


def _connected(broker: BrokerSettings) -> socket.socket:
    # A name may stand for several addresses, and each is tried for so long.
    within = 4 * broker.connect_timeout + OPENER_SECONDS
    connection = opened("connection", broker.host, broker.port, broker.connect_timeout, within=within)
    return socket.socket(fileno=connection)


def taken_over(error: BaseException) -> bool:
    """Whether another client with the same id has the session now (section 4.13, reason 0x8E)."""
    return isinstance(error, TakenOverError) or (
        isinstance(error, aiomqtt.MqttCodeError) and code(error) == SESSION_TAKEN_OVER
    )


def code(error: aiomqtt.MqttCodeError) -> int:
    """The reason code, as MQTT v5 numbers them; 0 for none."""
    return error.rc.value if isinstance(error.rc, ReasonCode) else error.rc or 0
