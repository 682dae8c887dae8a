"""What a server says of its own accord: QMP events, by way of a monitor that is there for nothing else.

A monitor serves one client at a time, so the one for commands can't be listened to all the time. A connection costs
20 KB, a millisecond when it is made, and nothing while it is quiet (measured with 150 of them).

A FUSE export raises no BLOCK_IO_ERROR, whatever fails under it (block/export/fuse.c): what its guest gets is EIO. It is
listened to all the same, as other exports do raise it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from qemu.qmp import EventListener, ExecuteError, QMPError

from reconcilers.blktap.qmp import Client

_IMAGE_CORRUPTED = "BLOCK_IMAGE_CORRUPTED"
_NAMES = (_IMAGE_CORRUPTED, "BLOCK_IO_ERROR", "BLOCK_EXPORT_DELETED")


class ServerEvents:
    """Listens until closed, or until the server ends, which an `ExitWatch` tells of.

    What happened before is asked for once at first: nobody may have listened then.
    """

    def __init__(
        self,
        socket: Path,
        on_damage: Callable[[str], Awaitable[None]],
        on_event: Callable[[str, str], Awaitable[None]],
    ) -> None:
        """Listen.

        Args:
            socket: The server's, for events.
            on_damage: Is awaited with the server's words if it found its image corrupt and serves it no more.
            on_event: Is awaited with the name of any other event, and the server's words.
        """
        self._socket = socket
        self._on_damage = on_damage
        self._on_event = on_event
        self.listening = asyncio.create_task(self._listen(), name=f"events of {socket}")

    def close(self) -> None:
        """Stop listening: `listening` ends soon, and then the monitor is free for another client. Idempotent."""
        self.listening.cancel()

    async def _listen(self) -> None:
        if not self._socket.exists():  # another kind of server, or one that an earlier version started
            return
        client = Client(self._socket.parent.name)
        with suppress(QMPError, OSError, EOFError):  # it has ended
            await client.connect(str(self._socket))
            try:
                with client.listener(_NAMES) as listener:
                    await self._tell_of_earlier(client)
                    await self._tell(listener)
            finally:
                with suppress(QMPError, OSError, EOFError):
                    await client.disconnect()

    async def _tell_of_earlier(self, client: Client) -> None:
        try:
            nodes = await client.execute("query-named-block-nodes", {"flat": True})
        except (
            ExecuteError
        ) as error:  # a node that met fatal damage is shut down and can't be described (block/qcow2.c)
            await self._on_damage(f"its server says: {error}")
            return
        for node in nodes if isinstance(nodes, list) else []:
            about = node.get("image", {}).get("format-specific", {}).get("data", {})
            # One that is only read may have had that mark all along, as bases may, and is served all the same.
            if about.get("corrupt") and not node.get("ro"):
                await self._on_damage("its header says that it is corrupt")

    async def _tell(self, listener: EventListener) -> None:
        async for event in listener:
            name, data = str(event["event"]), event.get("data", {})
            about = data if isinstance(data, dict) else {}
            words = str(about.get("msg", ""))
            # What is only read goes on: requests for the one bad cluster fail, and all others do not.
            if name == _IMAGE_CORRUPTED and about.get("fatal"):
                await self._on_damage(words)
            else:
                await self._on_event(name, words)
