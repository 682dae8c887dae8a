"""A bare MQTT client on the same broker: what receiving takes before anybody thinks about what was received."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.broker import Broker

PATIENCE = 60.0
ECHO = "tapster-bench/echo"


class BareClient:
    """Counts messages."""

    def __init__(self, broker: Broker) -> None:
        self._wanted = 0
        self._done = threading.Event()
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, "bare", protocol=mqtt.MQTTv5)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._count
        self._client.on_socket_open = send_at_once
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self._client.subscribe(ECHO, qos=1)
        self._await(self._subscribed)

    def seconds_of_echo(self) -> float:
        """A message to the broker and back."""
        self._expect(1)
        began = time.perf_counter()
        self._client.publish(ECHO, b"x" * 300, qos=1)
        self._await(self._done)
        return time.perf_counter() - began

    def seconds_of_retained(self, topics: str, count: int) -> float:
        """All that is retained there, from the subscription to the last message."""
        self._expect(count)
        began = time.perf_counter()
        self._client.subscribe(topics, qos=1)
        self._await(self._done)
        return time.perf_counter() - began

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def _expect(self, count: int) -> None:
        self._done.clear()
        self._wanted = count

    def _count(self, *_: object) -> None:
        self._wanted -= 1
        if self._wanted == 0:
            self._done.set()

    def _await(self, event: threading.Event) -> None:
        if not event.wait(PATIENCE):
            raise RuntimeError("the broker does not answer")


def send_at_once(_client: object, _data: object, connection: Any) -> None:
    """Have each message sent when it is published; by default it may wait 40 ms for an acknowledgement of the last."""

    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@contextmanager
def connected(broker: Broker) -> Iterator[BareClient]:
    """A client for the length of the block."""
    client = BareClient(broker)
    try:
        yield client
    finally:
        client.close()
