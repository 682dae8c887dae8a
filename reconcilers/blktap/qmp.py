"""One question at a time to a storage daemon (QEMU QMP reference)."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from qemu.qmp import ExecuteError, QMPClient, QMPError

from reconcilers.blktap.nodes import top
from reconcilers.blktap.tap import TapFolder
from reconcilers.errors import DiskError
from reconcilers.reason import Reason

_GREETING_SECONDS = 1.0
"""For the first attempt to be greeted."""


async def execute(
    tap: TapFolder, command: str, arguments: Mapping[str, object] | None = None
) -> list[dict[str, object]]:
    """Have a tap's server carry out a command; what it answers, if that is a list. Bound it with `asyncio.timeout`.

    Raises:
        DiskError: ServerFailed, if it refuses.
        QMPError, OSError, EOFError: It is not there, or going.
    """
    client = await _connected(tap)
    try:
        answer = await client.execute(command, arguments)
    except ExecuteError as error:
        raise DiskError(Reason.SERVER_FAILED, f"qemu-storage-daemon refused {command}: {error}") from error
    finally:
        with suppress(QMPError, OSError, EOFError):
            await client.disconnect()
    return answer if isinstance(answer, list) else []


async def exported_size(tap: TapFolder) -> int:
    """How many bytes a tap's server exports. As `execute`."""
    record = tap.record()
    if record is None:
        raise AssertionError(f"the tap folder {tap.path} has no record")
    for node in await execute(tap, "query-named-block-nodes", {"flat": True}):
        if node.get("node-name") == top(record) and isinstance(image := node.get("image"), dict):
            return int(image["virtual-size"])
    raise DiskError(Reason.SERVER_FAILED, f"the server of {record.key} does not say how large its export is")


async def _connected(tap: TapFolder) -> QMPClient:
    """A session on the control socket. Bound the wait with `asyncio.timeout`.

    A server that is about to run now and then accepts a client and never greets it, for as long as that stays: its
    listener was just being handed to the monitor's thread (seen with 7.2.22, once in some hundred starts on a busy
    machine). The next client is greeted.
    """
    patience = _GREETING_SECONDS
    while True:
        client = QMPClient(tap.path.name)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await client.connect(str(tap.qmp))
                return client
        patience *= 2  # the machine may just be busy
