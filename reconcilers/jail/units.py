"""Servers in systemd units of their own, `tapster-tap@<name>.service`: the agent's side of it.

    agent: UnitStarter ──RestartUnit──▶ systemd ──starts──▶ unit: jail become <orders>/<name>
           ◀──────────────────connects, reports──────────────────┘
           ──order, descriptors──▶

The unit has no capability, so whatever takes one is done from here: its user namespace's maps.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from reconcilers.jail.enter import map_users
from reconcilers.jail.launcher import Launched, launched
from reconcilers.jail.order import Order
from reconcilers.jail.warden import USERS
from reconcilers.systemd import Systemd

ORDERS = "orders"
"""The folder of sockets at which units ask for their orders, in the runtime folder; tapster-tap@.service names it."""

_GIVEN_NAMESPACES = ("net", "ipc", "uts")


def unit_of(name: str) -> str:
    """The unit of what is called so."""
    return f"tapster-tap@{name}.service"


class UnitStarter:
    """See `Starter`."""

    watches = True

    def __init__(self, runtime: Path, systemd: Systemd) -> None:
        """Args: the runtime folder, which must be that of tapster.service; and who starts units."""
        self._orders = runtime / ORDERS
        self._systemd = systemd

    async def launch(self, name: str, order: Order, log_fd: int, descriptors: Sequence[int]) -> Launched:
        """See `Starter`."""
        with _listening(self._orders / name) as listener:
            # Restarted and not started, since a unit whose server has just ended may not have noticed yet.
            connection = await _first_of(
                asyncio.get_running_loop().sock_accept(listener), self._systemd.restart(unit_of(name))
            )
        with connection:
            socket.send_fds(connection, [order.encode()], [log_fd, *descriptors])
            return launched(await _report(connection))

    def close(self) -> None:
        """See `Starter`."""
        self._systemd.close()


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(1)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


async def _first_of(accepting: Awaitable[tuple[socket.socket, object]], starting: Awaitable[None]) -> socket.socket:
    """The unit's connection, or the reason why there will be none; systemd's word that all went well may come later."""
    accept, start = asyncio.ensure_future(accepting), asyncio.ensure_future(starting)
    try:
        await asyncio.wait({accept, start}, return_when=asyncio.FIRST_COMPLETED)
        if not accept.done():
            await start
        connection, _ = await accept
    finally:
        accept.cancel()
        start.cancel()
        await asyncio.gather(accept, start, return_exceptions=True)  # the listener is in the loop until then
    return connection


async def _report(connection: socket.socket) -> str:
    """All that the unit reports, its question answered."""
    connection.setblocking(False)
    loop, said = asyncio.get_running_loop(), b""
    while part := await loop.sock_recv(connection, 4096):
        if part == USERS:
            code = await asyncio.to_thread(_users, launched(said.decode()).pid)
            await loop.sock_sendall(connection, b"%d" % code)
        else:
            said += part
    return said.decode("utf-8", "replace")


def _users(pid: int) -> int:
    """The errno that the unit is told: its maps are written only if systemd gave it all that it is taken to have given.

    Where namespaces can't be had, it warns and goes on without them (PrivateNetwork= in systemd.exec(5)).
    """
    for kind in _GIVEN_NAMESPACES:
        its, ours = (os.readlink(f"/proc/{each}/ns/{kind}") for each in (pid, "self"))  # noqa: PTH115 - one of many
        if its == ours:
            return errno.EXDEV
    return map_users(pid)
