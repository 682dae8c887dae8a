"""What can be asked for, and behind which door."""

import ipaddress
import os
import socket
from collections.abc import Callable

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG


def connection(host: str, port: int, timeout: float) -> int:
    """A TCP connection, within `timeout` seconds for each of the host's addresses."""
    return socket.create_connection((host, port), timeout).detach()


def listener(host: str, port: int) -> int:
    """A TCP socket that listens at an address of the loopback.

    Raises:
        ValueError: It is another address.
    """
    address = ipaddress.ip_address(host)
    if not address.is_loopback:
        raise ValueError(f"{host} is no address of the loopback, and nothing else is listened at")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET  # noqa: PLR2004
    return socket.create_server((host, port), family=family).detach()


def sock_diag() -> int:
    """A socket of netlink at which the kernel tells of all sockets of this network (sock_diag(7))."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG).detach()


def kernel_log() -> int:
    """The kernel's log, to read from its beginning without waiting."""
    return os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


THINGS: dict[str, tuple[Callable[..., int], str]] = {
    "connection": (connection, "network"),
    "listener": (listener, "network"),
    "sock_diag": (sock_diag, "network"),
    "kernel_log": (kernel_log, "kernel-log"),
}
"""Each opens a descriptor or raises OSError. The door is a part of its unit's name."""
