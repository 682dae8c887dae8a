"""systemd as what starts units, asked over D-Bus (org.freedesktop.systemd1(5))."""

import asyncio

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus
from dbus_fast.errors import DBusFastError

_BUS = "org.freedesktop.DBus"
_NAME = "org.freedesktop.systemd1"
_MANAGER = f"{_NAME}.Manager"
_JOB_ENDS = f"type='signal',sender='{_NAME}',interface='{_MANAGER}',member='JobRemoved'"


class Systemd:
    """Starts units, as many at a time as are asked for. The connection is made when it is first needed."""

    def __init__(self) -> None:
        self._connecting = asyncio.Lock()
        self._bus: MessageBus | None = None
        self._jobs: dict[str, asyncio.Queue[tuple[str, str]]] = {}

    async def restart(self, unit: str) -> None:
        """Start a unit, ending it first where it runs, and wait until systemd says that it did.

        Raises:
            OSError: It did not start, and what says why.
        """
        ends = self._jobs[unit] = asyncio.Queue()
        try:
            bus = await self._connected()
            job = await _call(bus, _manager("RestartUnit", unit, "replace"))
            while True:
                ended, result = await ends.get()
                if ended == job:
                    break
        except (DBusFastError, EOFError) as error:
            raise OSError(f"systemd does not start {unit}: {error}") from error
        finally:
            del self._jobs[unit]
        if result != "done":
            raise OSError(f"systemd could not start {unit} ({result}); see `journalctl -u {unit}`")

    def close(self) -> None:
        """Let go of the connection. What was started goes on."""
        if self._bus is not None:
            self._bus.disconnect()
            self._bus = None

    async def _connected(self) -> MessageBus:
        async with self._connecting:
            if self._bus is None or not self._bus.connected:
                bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
                bus.add_message_handler(self._heard)
                # Without the second one systemd tells nobody of its jobs.
                await _call(bus, _message(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", _JOB_ENDS))
                await _call(bus, _manager("Subscribe"))
                self._bus = bus
            return self._bus

    def _heard(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and message.member == "JobRemoved":
            _, job, unit, result = message.body
            if unit in self._jobs:
                self._jobs[unit].put_nowait((job, result))


def _manager(member: str, *words: str) -> Message:
    return _message(_NAME, "/org/freedesktop/systemd1", _MANAGER, member, *words)


def _message(destination: str, path: str, interface: str, member: str, *words: str) -> Message:
    return Message(
        destination=destination,
        path=path,
        interface=interface,
        member=member,
        signature="s" * len(words),
        body=list(words),
    )


async def _call(bus: MessageBus, message: Message) -> str:
    """The first word of the answer, "" if it has none."""
    reply = await bus.call(message)
    if reply is None or reply.message_type is MessageType.ERROR:
        raise OSError(f"{message.member}: {reply.body[0] if reply and reply.body else 'no answer'}")
    return str(reply.body[0]) if reply.body else ""
