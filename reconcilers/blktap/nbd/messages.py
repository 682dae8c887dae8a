"""The messages of the generic netlink family "nbd", packed and unpacked. Pure.

Layouts and numbers are those of linux/netlink.h, linux/genetlink.h and linux/nbd-netlink.h. All is in the host's byte
order; an attribute is padded to four bytes.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_GENERIC = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type

_REQUEST, _ACK, _NESTED, _TYPE_MASK = 0x1, 0x4, 0x8000, 0x3FFF
_ERROR = 2  # NLMSG_ERROR, also the acknowledgement

_CONTROL_FAMILY, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2  # nlctrl, CTRL_CMD_GETFAMILY, CTRL_ATTR_*

CONNECT, DISCONNECT, RECONFIGURE = 1, 2, 3
_INDEX, _SIZE, _BLOCK_SIZE, _SERVER_FLAGS, _CLIENT_FLAGS, _SOCKETS, _DEAD_CONN_TIMEOUT, _BACKEND = (
    1,
    2,
    3,
    5,
    6,
    7,
    8,
    10,
)
_SOCK_ITEM, _SOCK_FD = 1, 1

_DESTROY_ON_DISCONNECT, _DISCONNECT_ON_CLOSE = 1, 2  # NBD_CFLAG_*

Attributes = list[tuple[int, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How a device is to stand over a server.

    Attributes:
        socket_fd: Connected, with the handshake done. The kernel keeps the open socket.
        size_bytes: Of the device.
        block_size: Its logical block size in bytes.
        flags: The server's transmission flags.
        backend: The mark that the kernel shows in sysfs, and wants again for every change.
        grace: Seconds that requests wait for another socket when this one is closed; 0 lets them fail at once.
    """

    socket_fd: int
    size_bytes: int
    block_size: int
    flags: int
    backend: str
    grace: int


def get_family(sequence: int) -> bytes:
    """Ask for the number of the family "nbd", which the kernel gives out anew at each loading of the module."""
    return _message(_CONTROL_FAMILY, _GET_FAMILY, sequence, [(_FAMILY_NAME, b"nbd\0")])


def connect(family: int, sequence: int, connection: Connection) -> bytes:
    """Make a device of any free number, which goes with its server.

    One that stayed would keep its sequence number (`diskseq`) and be taken for the disk that it was before.

    There is no request timeout on purpose. With one, the kernel would send a write again to a server that is merely
    slow, and the older copy could then overtake a newer write.
    """
    attributes = [
        (_SIZE, _u64(connection.size_bytes)),
        (_BLOCK_SIZE, _u64(connection.block_size)),
        (_SERVER_FLAGS, _u64(connection.flags)),
        (_CLIENT_FLAGS, _u64(_DESTROY_ON_DISCONNECT)),
        (_DEAD_CONN_TIMEOUT, _u64(connection.grace)),
        (_BACKEND, connection.backend.encode() + b"\0"),
        (_SOCKETS | _NESTED, _socket(connection.socket_fd)),
    ]
    return _message(family, CONNECT, sequence, attributes)


def reconnect(family: int, sequence: int, index: int, backend: str, socket_fd: int) -> bytes:
    """Put another socket in place of one that was closed."""
    sockets = (_SOCKETS | _NESTED, _socket(socket_fd))
    return _message(family, RECONFIGURE, sequence, [*_device(index, backend), sockets])


def resize(family: int, sequence: int, index: int, backend: str, size_bytes: int) -> bytes:
    """Give a device another size."""
    return _message(family, RECONFIGURE, sequence, [*_device(index, backend), (_SIZE, _u64(size_bytes))])


def disconnect_on_close(family: int, sequence: int, index: int, backend: str, *, on: bool) -> bytes:
    """Have a device go when its last user lets go of it, or not."""
    flags = _DESTROY_ON_DISCONNECT | (_DISCONNECT_ON_CLOSE if on else 0)
    return _message(family, RECONFIGURE, sequence, [*_device(index, backend), (_CLIENT_FLAGS, _u64(flags))])


@dataclass(frozen=True, slots=True)
class Answer:
    """One message from the kernel.

    Attributes:
        sequence: Of the request that it answers.
        errno: Of an error or, as 0, of an acknowledgement, which is the last message of an answer; None for others.
        attributes: By type, of all other messages.
    """

    sequence: int
    errno: int | None
    attributes: dict[int, bytes]

    @property
    def family(self) -> int | None:
        """The number that `get_family` asks for."""
        value = self.attributes.get(_FAMILY_ID, b"")
        return int(struct.unpack("=H", value)[0]) if len(value) == 2 else None  # noqa: PLR2004

    @property
    def index(self) -> int | None:
        """The number of the device that `connect` has made."""
        value = self.attributes.get(_INDEX, b"")
        return int(struct.unpack("=I", value)[0]) if len(value) == 4 else None  # noqa: PLR2004


def answers(data: bytes) -> Iterator[Answer]:
    """The messages in a datagram; one that is cut off is dropped."""
    while len(data) >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            return
        body, data = data[_HEADER.size : length], data[_padded(length) :]
        if kind == _ERROR and len(body) >= 4:  # noqa: PLR2004
            yield Answer(sequence, -struct.unpack_from("=i", body)[0], {})
        elif kind != _ERROR:
            yield Answer(sequence, None, dict(split_attributes(body[_GENERIC.size :])))


def _device(index: int, backend: str) -> Attributes:
    return [(_INDEX, struct.pack("=I", index)), (_BACKEND, backend.encode() + b"\0")]


def _socket(fd: int) -> bytes:
    return _attribute(_SOCK_ITEM | _NESTED, _attribute(_SOCK_FD, struct.pack("=I", fd)))


def _u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def _message(kind: int, command: int, sequence: int, attributes: Attributes) -> bytes:
    body = _GENERIC.pack(command, 1, 0) + b"".join(_attribute(*each) for each in attributes)
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK, sequence, os.getpid()) + body


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_padded(length) - length)


def split_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in the body of a netlink message, each with its type; one that is cut off is dropped."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & _TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[_padded(length) :]


def _padded(length: int) -> int:
    return -(-length // 4) * 4
