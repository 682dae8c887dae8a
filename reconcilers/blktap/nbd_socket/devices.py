"""This instance's sockets, `<runtime>/sockets/<disk id>`: each is a disk as a hypervisor that speaks NBD takes it.

Who may connect is the file system's business: root, and one group where the settings name one. Whether somebody is
connected is the server's: it alone can tell, and close its door at the same moment.
"""

import asyncio
import grp
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from qemu.qmp import QMPError

from reconcilers.acl import admit
from reconcilers.blktap.device import BlockNode
from reconcilers.blktap.nbd.devices import DEFAULT_BLOCK_SIZE
from reconcilers.blktap.nbd_socket.clients import clients_of
from reconcilers.blktap.nodes import EXPORT
from reconcilers.blktap.qmp import execute, exported_size
from reconcilers.blktap.tap import TapFolder
from reconcilers.errors import DiskError
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey, DiskSpec

T = TypeVar("T")

ANSWER_SECONDS = 5.0
"""How long a server may take to say what it exports, or to take it back; it takes a millisecond."""


class NbdSockets:
    """See `TapDevice`. What a hypervisor finds at a socket is written down in the tap's folder as long as it may."""

    def __init__(self, taps: Path, group: str | None) -> None:
        """Args: the folder of all taps; the group that may connect, by name."""
        self._taps = taps
        self._group = group

    def find(self, key: DiskKey) -> BlockNode | None:
        """See `TapDevice`."""
        tap = TapFolder.of(self._taps, key)
        try:
            size, sector = map(int, _shown(tap).read_text(encoding="ascii").split())
        except FileNotFoundError:
            return None
        return BlockNode(str(tap.socket), None, size, sector)

    def glimpse(self, key: DiskKey) -> BlockNode | None:
        """See `TapDevice`. The server is never asked."""
        return self.find(key)

    def attach(self, spec: DiskSpec, tap: TapFolder) -> BlockNode:
        """See `TapDevice`. A client that waits for another server finds the disk as it was."""
        before, sector = self.find(spec.key), spec.logical_block_size or DEFAULT_BLOCK_SIZE
        size = asyncio.run(_in_time(tap, exported_size(tap))) // sector * sector
        if before and size < before.size_bytes:
            message = f"the server of {tap.socket} has {size} bytes now, and its client knows {before.size_bytes}"
            raise DiskError(Reason.SERVER_FAILED, message)
        self._admit(tap.socket)
        node = BlockNode(str(tap.socket), None, size, sector)
        draft = tap.path / "shown.new"
        draft.write_text(f"{node.size_bytes} {node.logical_block_size}", encoding="ascii")
        draft.rename(_shown(tap))
        tap.connected()
        return node

    def detach(self, key: DiskKey) -> None:
        """See `TapDevice`."""
        tap = TapFolder.of(self._taps, key)
        _move(_shown(tap), _hidden(tap))  # first: a disk without its export is never to look like one that is there
        try:
            taken_back = not tap.locked() or asyncio.run(_taken_back(tap))
        except DiskError:
            _move(_hidden(tap), _shown(tap))
            raise
        if not taken_back:
            _move(_hidden(tap), _shown(tap))
            holders = clients_of(str(tap.socket))
            raise DiskError(Reason.DEVICE_IN_USE, f"{tap.socket} is {holders}", holders)
        tap.socket.unlink(missing_ok=True)

    def _admit(self, path: Path) -> None:
        """Root may connect until then (unix(7): that takes the right to write)."""
        if self._group is None:
            path.chmod(0o600)
            return
        try:
            admit(path, grp.getgrnam(self._group).gr_gid)
        except KeyError as error:
            message = f"this host has no group {self._group!r}; mend blktap.socket_group, or make it with groupadd"
            raise DiskError(Reason.BACKEND_UNAVAILABLE, message) from error


def _shown(tap: TapFolder) -> Path:
    return tap.path / "shown"


def _hidden(tap: TapFolder) -> Path:
    """Where that is while the disk is taken down: its next agent is to know it, should a hypervisor still have it."""
    return tap.path / "hidden"


def _move(before: Path, after: Path) -> None:
    with suppress(FileNotFoundError):
        before.rename(after)


async def _taken_back(tap: TapFolder) -> bool:
    """Whether nobody is connected, and nobody can be any more: the server sees to both at once.

    Its mode `safe` deletes no export that a client has (BlockExportRemoveMode). One that was deleted already is found
    where an agent was killed in between.
    """
    try:
        await _in_time(tap, execute(tap, "block-export-del", {"id": EXPORT, "mode": "safe"}))
    except DiskError as error:
        if error.reason is not Reason.SERVER_FAILED:
            raise
        return not any(each["id"] == EXPORT for each in await _in_time(tap, execute(tap, "query-block-exports")))
    return True


async def _in_time(tap: TapFolder, answer: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await answer
    except TimeoutError as error:
        message = f"the server of {tap.socket} did not answer within {ANSWER_SECONDS:g} s"
        raise DiskError(Reason.TIMED_OUT, message) from error
    except (QMPError, OSError, EOFError) as error:
        raise DiskError(Reason.SERVER_LOST, f"the server of {tap.socket} has just ended: {error}") from error
