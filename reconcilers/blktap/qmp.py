"""One question at a time to a storage daemon (QEMU QMP reference)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError

from reconcilers.blktap.nodes import top
from reconcilers.blktap.tap import TapFolder
from reconcilers.errors import DiskError
from reconcilers.reason import Reason

_GREETING_SECONDS = 1.0
"""For the first attempt to be greeted."""


class Client(QMPClient):
    """A session with a tap's server."""

    async def ask(self, command: str, arguments: Mapping[str, object] | None = None) -> list[dict[str, object]]:
        """Have a command carried out; what is answered, if that is a list.

        Raises:
            DiskError: ServerFailed, if it is refused.
            QMPError, OSError, EOFError: The server is going.
        """
        try:
            answer = await self.execute(command, arguments)
        except ExecuteError as error:
            raise DiskError(Reason.SERVER_FAILED, f"qemu-storage-daemon refused {command}: {error}") from error
        return answer if isinstance(answer, list) else []

    # The library's own print every message for a log that nobody keeps, with line breaks and indents: a tenth of all
    # that the agent does for a tap.
    def _cb_outbound(self, msg: Message) -> Message:
        return super()._cb_outbound(msg) if self.logger.isEnabledFor(logging.DEBUG) else msg

    def _cb_inbound(self, msg: Message) -> Message:
        return super()._cb_inbound(msg) if self.logger.isEnabledFor(logging.DEBUG) else msg


@asynccontextmanager
async def session(tap: TapFolder) -> AsyncIterator[Client]:
    """A session with a tap's server for the length of the block. Bound it with `asyncio.timeout`.

    Raises:
        QMPError, OSError, EOFError: It is not there, or going.
    """
    client = await _connected(tap)
    try:
        yield client
    finally:
        with suppress(QMPError, OSError, EOFError):
            await client.disconnect()


async def execute(
    tap: TapFolder, command: str, arguments: Mapping[str, object] | None = None
) -> list[dict[str, object]]:
    """As `Client.ask`, in a session of its own."""
    async with session(tap) as client:
        return await client.ask(command, arguments)


async def exported_size(tap: TapFolder) -> int:
    """How many bytes a tap's server exports. As `execute`."""
    record = tap.record()
    if record is None:
        raise AssertionError(f"the tap folder {tap.path} has no record")
    for node in await execute(tap, "query-named-block-nodes", {"flat": True}):
        if node.get("node-name") == top(record) and isinstance(image := node.get("image"), dict):
            return int(image["virtual-size"])
    raise DiskError(Reason.SERVER_FAILED, f"the server of {record.key} does not say how large its export is")


async def _connected(tap: TapFolder) -> Client:
    """A session on the control socket. Bound the wait with `asyncio.timeout`.

    A server that is about to run now and then accepts a client and never greets it, for as long as that stays: its
    listener was just being handed to the monitor's thread (seen with 7.2.22, once in some hundred starts on a busy
    machine). The next client is greeted.
    """
    patience = _GREETING_SECONDS
    while True:
        client = Client(tap.path.name)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await client.connect(str(tap.qmp))
                return client
        patience *= 2  # the machine may just be busy
