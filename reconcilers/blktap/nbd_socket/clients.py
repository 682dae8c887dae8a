"""Who is connected to a unix socket: their names, from the kernel, and the moment when the last of them goes."""

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from reconcilers.blktap.nbd.messages import split_attributes
from reconcilers.holders import DeviceHolders, holders_of_path
from reconcilers.opener.ask import opened
from reconcilers.spec import DiskKey

_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_*
_CONNECTED = 1 << 1  # 1 << TCP_ESTABLISHED
_SHOW_NAME_AND_PEER = 1 | 4  # UDIAG_SHOW_*
_NAME, _PEER = 0, 2  # UNIX_DIAG_*

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_QUESTION = struct.Struct("=BBHIIIII")  # struct unix_diag_req
_ANSWER_BYTES = 16  # struct unix_diag_msg

_PATIENCE_SECONDS = 2.0


def clients_of(path: str) -> DeviceHolders:
    """The processes that are connected to a listening socket, as far as they can be seen from here (sock_diag(7)).

    One in a network namespace of its own can't, nor can any where the kernel has no unix_diag.
    """
    try:
        inodes = list(_peers(path))
    except OSError:
        inodes = []
    holders = {holder for inode in inodes for holder in holders_of_path(f"socket:[{inode}]")}
    return DeviceHolders(tuple(sorted(holders, key=lambda one: one.pid)), (), ())


def _peers(path: str) -> Iterator[int]:
    """Inodes of the sockets at the other end of those that were accepted at `path`, and bear its name."""
    with socket.socket(fileno=opened("sock_diag")) as kernel:
        kernel.settimeout(_PATIENCE_SECONDS)
        question = _QUESTION.pack(socket.AF_UNIX, 0, 0, _CONNECTED, 0, _SHOW_NAME_AND_PEER, 0, 0)
        kernel.send(_HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, _REQUEST_DUMP, 1, 0) + question)
        while True:
            data = kernel.recv(1 << 16)
            while len(data) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind in {_ERROR, _DONE}:
                    return
                about = dict(split_attributes(data[_HEADER.size + _ANSWER_BYTES : length]))
                if about.get(_NAME, b"").rstrip(b"\0") == os.fsencode(path) and _PEER in about:
                    yield int.from_bytes(about[_PEER], sys.byteorder)
                data = data[-(-length // 4) * 4 :]


@dataclass(frozen=True, slots=True)
class _Place:
    client: socket.socket
    loop: asyncio.AbstractEventLoop

    def leave(self) -> None:
        self.loop.remove_reader(self.client)
        self.client.close()


class Queue:
    """Tells when a socket is free: we stand in line behind its client, and are greeted only when that has gone.

    A server takes one client at a time (`nodes.py`). Nothing else tells of a client that goes, and this also of one
    that can't be seen from here. Use it in a running event loop.
    """

    def __init__(self, on_free: Callable[[DiskKey], None]) -> None:
        self._on_free = on_free
        self._places: dict[DiskKey, _Place] = {}

    def stand(self, key: DiskKey, path: str) -> None:
        """Tell once when the socket of a disk is free, or its server gone."""
        self.leave(key)
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            client.connect(path)
        except OSError:  # its server has just ended, of which others tell
            client.close()
            return
        place = self._places[key] = _Place(client, asyncio.get_running_loop())
        place.loop.add_reader(client, self._greeted, key)

    def leave(self, key: DiskKey) -> None:
        """Stand in line no more. Idempotent."""
        if place := self._places.pop(key, None):
            place.leave()

    def close(self) -> None:
        """Leave every line."""
        for key in list(self._places):
            self.leave(key)

    def _greeted(self, key: DiskKey) -> None:
        self.leave(key)  # at once, for whoever comes next
        self._on_free(key)
