"""What the kernel says about block devices, without udev: group 1 of NETLINK_KOBJECT_UEVENT (netlink(7)).

A loop device tells of its end with a `change` (drivers/block/loop.c, `__loop_clr_fd`), any other device with `remove`.
Each message is `ACTION@devpath` and then `NAME=value` texts, each ended by a NUL (lib/kobject_uevent.c). They are read
here and not by a library for udev, which looks each device up in sysfs besides: a millisecond for every loop device
that comes up.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

_KOBJECT_UEVENT = 15  # linux/netlink.h
_KERNEL_GROUP = 1  # 2 is udev's
_MESSAGE_MAX = 8192  # UEVENT_BUFFER_SIZE is 2048, and the header comes on top
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_ROOM = 16 << 20  # bytes of messages that may wait: a thousand devices come and go within moments

REST_SECONDS = 0.005
"""So long after a look at the messages there is no other. The kernel tells of every device that we bring up ourselves,
and to wake the event loop for each, beside the thread that is at it, takes a twentieth of the time that a disk does."""


class Uevent(NamedTuple):
    """What the kernel says about a block device.

    Attributes:
        node: The device.
        diskseq: The number of what it gave access to at that moment, which grows with each attachment on the host;
            None before Linux 5.15.
    """

    node: str
    diskseq: int | None


class KernelEvents:
    """Calls `on_device` for each block device about which the kernel says anything.

    Use it as a context manager in a running event loop. Events can be lost when very many come at once (ENOBUFS), so
    they only save time; a slow resync is still needed.
    """

    def __init__(self, on_device: Callable[[Uevent], None]) -> None:
        self._on_device = on_device

    def __enter__(self) -> Self:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, _KOBJECT_UEVENT)
        with suppress(OSError):  # more than net.core.rmem_max is for root
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        self._socket.bind((0, _KERNEL_GROUP))
        self._loop = asyncio.get_running_loop()
        self._rest = self._loop.call_soon(self._listen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rest.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _listen(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._read)

    def _read(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._rest = self._loop.call_later(REST_SECONDS, self._listen)
        with suppress(BlockingIOError):
            while True:
                try:
                    message, (port, _) = self._socket.recvfrom(_MESSAGE_MAX)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    continue
                from_kernel = port == 0  # anybody with the right may send here
                if from_kernel and (uevent := block_uevent(message)):
                    self._on_device(uevent)


def block_uevent(message: bytes) -> Uevent | None:
    """What a message says of a block device; None if it is about something else."""
    name = _value(message, b"DEVNAME")
    if name is None or b"\0SUBSYSTEM=block\0" not in message:
        return None
    diskseq = _value(message, b"DISKSEQ")
    return Uevent(f"/dev/{name.decode('utf-8', 'surrogateescape')}", int(diskseq) if diskseq else None)


def _value(message: bytes, name: bytes) -> bytes | None:
    """By hand, as there is a message for each device that comes up, and nearly all that it says is of no interest."""
    _, found, rest = message.partition(b"\0" + name + b"=")
    return rest.partition(b"\0")[0] if found else None
