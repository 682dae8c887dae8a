"""The driver's seat of a rollout: one operator at a time, and never held by one who is gone.

Who drives is retained on the rollout's `driver` topic, and the same message with `driving: false` is the connection's
will, so the broker vacates the seat of a driver that was killed or cut off. No clock is asked.

Who takes the seat from somebody waits for the will of that connection: a driver that finds another one in its seat ends
with it, and for one that is gone the broker does. Before a broker publishes a will it has acted on all that the
connection sent, so what is read of the rollout after that has the former driver's last word, and nothing of it is in
flight any more.

One window is left: a driver that stands still, or is cut off without the broker's noticing, longer than
`NOTICE_SECONDS`. Before each thing that it writes, a driver has the broker pass on all that it has for it, and looks
who sits there. So all that can still come of such a one, once it wakes, is what it had looked for last: one state, one
wave's record, or one part of a wave's documents.
"""

import asyncio
import getpass
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiomqtt
from pydantic import ValidationError

from agent.bus.connection import DeniedError
from agent.bus.message import Message
from agent.bus.operator import BusError, Operator, operator
from agent.bus.topics import FleetTopics
from agent.rollout.record import RolloutDriver, RolloutState
from agent.settings import Settings

GOODBYE_SECONDS = 2.0
"""How long leaving may take; the broker vacates the seat otherwise."""

NOTICE_SECONDS = 10.0
"""How long a former driver is waited for. It looks at its seat several times a second, unless it stands still."""


class TakenOverError(Exception):
    """Somebody else drives the rollout now. The message says who."""


def whoami() -> str:
    """User and machine, as other operators are told."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command, over all its connections.

    Attributes:
        sessions: Its sessions, one for each connection; wills of earlier ones may come late.
        states: Where the rollout stood when the seat was taken, and what was written since, or tried to be.
    """

    sessions: set[str] = field(default_factory=set)
    states: list[RolloutState | None] = field(default_factory=list)


class Seat:
    """A connection that may drive one rollout.

    Attributes:
        op: The connection.
        me: What the others read.
        run: Whose connection it is.
        taken: Whether it was taken from here, whoever has it now.
    """

    def __init__(self, op: Operator, topic: str, me: RolloutDriver, run: Run) -> None:
        self.op = op
        self.me = me
        self.run = run
        self.taken = False
        self._topic = topic
        self._seen = False
        self._vacant = False
        self._others: set[str] = set()
        self._successor: RolloutDriver | None = None
        op.overhear = self._hear

    async def take(self) -> None:
        """Sit down; who sat there is told, and stops."""
        self._vacant = False
        await self.op.publish(self._topic, self.me.model_dump_json().encode())
        self.taken = True

    async def take_over(self) -> None:
        """Sit down, and wait until all who sat there are gone, or have had the time to notice.

        Raises:
            TakenOverError: Somebody else has sat down since.
        """
        await self.take()
        loop = asyncio.get_running_loop()
        until = loop.time() + NOTICE_SECONDS
        while self._others or not self._seen:
            if await self.op.message(max(0.0, until - loop.time())) is None:
                return
            await self.check()

    async def look(self) -> None:
        """As `check`, of all that the broker has for us now."""
        await self.op.catch_up()
        await self.check()

    async def check(self) -> None:
        """Make sure, as far as is known here, that the seat is still ours.

        Raises:
            TakenOverError: Somebody else has sat down since.
        """
        if self._successor is not None:
            raise TakenOverError(f"{self._successor.operator} drives it now, and nothing more is published from here")
        if self._vacant and self.taken:  # by the will of one who sat here before, and was cut off
            await self.take()

    async def leave(self) -> None:
        """Vacate the seat, unless somebody else has it."""
        if self.taken and self._successor is None:
            await self.op.publish(self._topic, _gone(self.me))

    def _hear(self, message: Message) -> None:
        """Note who comes and goes. Who drove before the broker told us that we do was there before us."""
        if message.topic != self._topic:
            return
        driver = _driver(message)
        if driver is None or not driver.driving:
            self._vacant = True
            if driver is not None:
                self._others.discard(driver.session)
        elif driver.session == self.me.session:
            self._vacant, self._seen = False, True
        elif driver.session not in self.run.sessions:
            self._others.add(driver.session)
            if self._seen:
                self._successor = driver


def _driver(message: Message) -> RolloutDriver | None:
    try:
        return RolloutDriver.model_validate_json(message.payload) if message.payload else None
    except ValidationError:
        return None


def _gone(me: RolloutDriver) -> bytes:
    return me.model_copy(update={"driving": False}).model_dump_json().encode()


@asynccontextmanager
async def seat(settings: Settings, rollout: str, run: Run) -> AsyncIterator[Seat]:
    """Connect so that the rollout may be driven; on the way out the seat is vacated, also after Ctrl-C.

    Args:
        settings: Say which broker and which fleet.
        rollout: Its id.
        run: Whose connection it is; its session is added.

    Raises:
        BusError: The broker can't be reached, refuses, or went away inside the block.
    """
    topic = FleetTopics(settings.fleet).rollout(rollout, "driver")
    me = RolloutDriver(operator=whoami(), session=secrets.token_hex(8), driving=True)
    run.sessions.add(me.session)
    will = aiomqtt.Will(topic, _gone(me), qos=1, retain=True)
    refusal: Exception | None = None
    async with operator(settings, will=will) as op:
        place = Seat(op, topic, me, run)
        try:
            await op.retained(topic)
            yield place
        except (aiomqtt.MqttError, DeniedError):
            raise
        except Exception as error:
            if place.taken:
                raise
            refusal = error  # who never sat there leaves without a will, which would say that they did
        finally:
            with suppress(BusError, aiomqtt.MqttError, TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await place.leave()
    if refusal is not None:
        raise refusal
