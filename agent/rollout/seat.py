"""The driver's seat of a rollout: one operator at a time, and never held by one who is gone.

Who drives is retained on the rollout's `driver` topic, and the same message with `driving: false` is the connection's
will, so the broker vacates the seat of a driver that was killed or cut off. No clock is asked.
"""

import asyncio
import getpass
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiomqtt
from pydantic import ValidationError

from agent.bus.message import Message
from agent.bus.operator import BusError, Operator, operator
from agent.bus.topics import FleetTopics
from agent.rollout.record import RolloutDriver
from agent.settings import Settings

GOODBYE_SECONDS = 2.0
"""How long leaving may take; the broker vacates the seat otherwise."""


class TakenOverError(Exception):
    """Somebody else drives the rollout now. The message says who."""


def whoami() -> str:
    """User and machine, as other operators are told."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


class Seat:
    """A connection that may drive one rollout.

    Attributes:
        op: The connection.
        me: What the others read.
    """

    def __init__(self, op: Operator, topic: str, me: RolloutDriver) -> None:
        self.op = op
        self.me = me
        self._topic = topic
        self._taken = False

    async def take(self) -> None:
        """Sit down; who sat there is told, and stops."""
        await self.op.publish(self._topic, self.me.model_dump_json().encode())
        self._taken = True

    async def heard(self, message: Message) -> None:
        """Take in a message of the rollout.

        Raises:
            TakenOverError: Somebody else has sat down.
        """
        if message.topic != self._topic or not self._taken:
            return
        try:
            driver = RolloutDriver.model_validate_json(message.payload) if message.payload else None
        except ValidationError:
            driver = None
        if driver is not None and driver.session != self.me.session and driver.driving:
            self._taken = False
            raise TakenOverError(f"{driver.operator} drives it now, and nothing more is published from here")
        if driver is None or not driver.driving:  # the will of one who sat here before, and was cut off
            await self.take()

    async def leave(self) -> None:
        """Vacate the seat, unless somebody else has it."""
        if self._taken:
            self._taken = False
            await self.op.publish(self._topic, _gone(self.me))


def _gone(me: RolloutDriver) -> bytes:
    return me.model_copy(update={"driving": False}).model_dump_json().encode()


@asynccontextmanager
async def seat(settings: Settings, rollout: str) -> AsyncIterator[Seat]:
    """Connect so that the rollout may be driven; on the way out the seat is vacated, also after Ctrl-C.

    Raises:
        BusError: The broker can't be reached, refuses, or went away inside the block.
    """
    topic = FleetTopics(settings.fleet).rollout(rollout, "driver")
    me = RolloutDriver(operator=whoami(), session=secrets.token_hex(8), driving=True)
    will = aiomqtt.Will(topic, _gone(me), qos=1, retain=True)
    async with operator(settings, will=will) as op:
        place = Seat(op, topic, me)
        try:
            yield place
        finally:
            with suppress(BusError, aiomqtt.MqttError, TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await place.leave()
