"""The launcher process: takes orders from the agent and starts servers that outlive it.

Two ways of being called:

    jail serve FD        takes orders on a socket until the agent is gone, and forks for each
    jail become SOCKET   asks for one order at a socket and becomes that server: the program of a systemd unit

An order is one packet with descriptors (unix(7), SCM_RIGHTS): where to report, the log, and those that the server
inherits as 3, 4 and so on. The report is read until its end, which is the server's start:

    pid 4711
    lacks seccomp: …       a piece of the jail that can't be had
    failed …               the server was not started
"""

import array
import fcntl
import os
import signal
import socket

from reconcilers.jail.enter import enter
from reconcilers.jail.order import Order

PACKET_BYTES = 1 << 17
FIRST_DESCRIPTOR = 3
_DESCRIPTORS_MAX = 64
_OUT_OF_THE_WAY = 512  # numbers from here on are free for a moment's use


def main(words: list[str]) -> None:
    """See above."""
    match words:
        case ["serve", number]:
            _serve(socket.socket(fileno=int(number)))
        case ["become", path]:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
                agent.connect(path)
                packet, descriptors = _receive(agent)
            _become(packet, descriptors)
        case _:
            raise SystemExit("usage: jail serve FD | jail become SOCKET")


def _serve(agent: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # servers are reaped by the kernel
    while True:
        packet, descriptors = _receive(agent)
        if not packet:
            return
        if os.fork() == 0:
            agent.close()
            os.setsid()
            _become(packet, descriptors)
        for fd in descriptors:
            os.close(fd)


def _receive(agent: socket.socket) -> tuple[bytes, list[int]]:
    room = socket.CMSG_SPACE(_DESCRIPTORS_MAX * array.array("i").itemsize)
    packet, ancillary, _, _ = agent.recvmsg(PACKET_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for _, _, data in ancillary:
        numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return packet, list(numbers)


def _become(packet: bytes, descriptors: list[int]) -> None:
    """Never returns."""
    report, log, *inherited = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY) for fd in descriptors)
    for fd in descriptors:
        os.close(fd)
    for ignored in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):  # the last two Python ignores
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.write(report, b"pid %d\n" % os.getpid())
        order = Order.decode(packet)
        nothing = os.open("/dev/null", os.O_RDWR)
        for number, fd in enumerate((nothing, log, log, *inherited)):
            os.dup2(fd, number)
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR + len(inherited))
        os.closerange(report + 1, 1 << 16)
        os.umask(0o077)
        for lacking in enter(order):
            os.write(report, f"lacks {lacking}\n".encode())
        os.execve(order.program, order.arguments, order.environment)  # noqa: S606  # nosec B606
    except OSError as error:
        os.write(
            report, f"failed {error.strerror or error}{f': {error.filename}' if error.filename else ''}\n".encode()
        )
    finally:
        os._exit(1)
