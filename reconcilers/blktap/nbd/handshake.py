"""The part of the NBD protocol that comes before the first request, which the kernel leaves to its user.

See doc/proto.md of the Network Block Device project, "Fixed newstyle negotiation". Nothing beyond plain replies is
agreed on, since the kernel knows nothing else.
"""

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from reconcilers.errors import DiskError
from reconcilers.reason import Reason

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_REPLY = struct.Struct(">QIII")
_EXPORT = struct.Struct(">HQH")

_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO = 7
_REP_MAGIC, _REP_ACK, _REP_INFO, _REP_IS_ERROR = 0x3E889045565A9, 1, 3, 1 << 31
_INFO_EXPORT = 0
_LONGEST_REPLY = 4096 + 64


@dataclass(frozen=True, slots=True)
class Export:
    """What a server says of its export: its size in bytes and its transmission flags (NBD_FLAG_*, linux/nbd.h)."""

    size_bytes: int
    flags: int

    @property
    def read_only(self) -> bool:
        """Whether the server refuses writes."""
        return bool(self.flags & 2)

    @property
    def flushes(self) -> bool:
        """Whether a flush of the guest's reaches the server."""
        return bool(self.flags & 4)


def connect(path: Path, name: str, *, within: float) -> tuple[socket.socket, Export]:
    """Connect to a server and agree on an export; the socket is then ready to be handed to the kernel.

    Args:
        path: The server's unix socket.
        name: Of the export.
        within: Seconds that each answer may take.

    Raises:
        DiskError: ServerFailed, or TimedOut.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        client.settimeout(within)
        client.connect(os.fspath(path))
        export = _negotiate(client, name)
        client.settimeout(None)
    except TimeoutError as error:
        client.close()
        raise DiskError(Reason.TIMED_OUT, f"the server at {path} did not answer within {within:g} s") from error
    except (OSError, EOFError, ValueError) as error:
        client.close()
        raise DiskError(Reason.SERVER_FAILED, f"the server at {path} gives no export {name!r}: {error}") from error
    return client, export


def _negotiate(client: socket.socket, name: str) -> Export:
    magic, kind, flags = _GREETING.unpack(_read(client, _GREETING.size))
    if (magic, kind) != (b"NBDMAGIC", b"IHAVEOPT") or not flags & _FIXED_NEWSTYLE:
        raise ValueError("it does not speak the fixed newstyle protocol")
    data = struct.pack(">I", len(name.encode())) + name.encode() + struct.pack(">H", 0)
    client.sendall(struct.pack(">I", _FIXED_NEWSTYLE | flags & _NO_ZEROES))
    client.sendall(_OPTION.pack(b"IHAVEOPT", _OPT_GO, len(data)) + data)
    export: Export | None = None
    while True:
        magic, option, reply, length = _REPLY.unpack(_read(client, _REPLY.size))
        if magic != _REP_MAGIC or option != _OPT_GO or length > _LONGEST_REPLY:
            raise ValueError("its answer makes no sense")
        body = _read(client, length)
        if reply & _REP_IS_ERROR:
            raise ValueError(body.decode("utf-8", "replace") or f"it answers with error {reply & ~_REP_IS_ERROR}")
        if reply == _REP_INFO and length == _EXPORT.size and _EXPORT.unpack(body)[0] == _INFO_EXPORT:
            _, size, flags = _EXPORT.unpack(body)
            export = Export(size, flags)
        if reply == _REP_ACK:
            break
    if export is None:
        raise ValueError("it does not say how large its export is")
    return export


def _read(client: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = client.recv(length - len(parts))
        if not part:
            raise EOFError("it hung up")
        parts += part
    return bytes(parts)
