"""What starts servers, outside of the agent.

Two ways of being called:

    jail serve FD        the launcher process: takes orders on a socket until the agent is gone, and forks for each
    jail become SOCKET   the program of a systemd unit: asks for one order at a socket, and looks after that server

An order is one packet with descriptors (unix(7), SCM_RIGHTS): where to report, the log, and those that the server
inherits as 3, 4 and so on. In a unit, the report goes where the order came from, and behind the others the server has
a socket at which it is asked for signs of life. The report is read until its end, which is the server's start:

    pid 4711
    users                  wants its user namespace's maps written, and reads an errno as its answer; in a unit only
    lacks seccomp: …       a piece of the jail that can't be had
    failed …               the server was not started

Where the program only starts the server (`Order.daemon`), the report goes on until that program has ended, and what
counts is the last pid in it.
"""

import array
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from reconcilers.jail import kernel
from reconcilers.jail.enter import PIECES, Piece, enter, pieces_of_daemon, pieces_of_unit
from reconcilers.jail.order import Order
from reconcilers.jail.pulse import Command, Monitor, look_after

PACKET_BYTES = 1 << 17
FIRST_DESCRIPTOR = 3
USERS = b"users\n"
_DESCRIPTORS_MAX = 64
_OUT_OF_THE_WAY = 512  # numbers from here on are free for a moment's use


def run() -> None:
    """The program `tapster-tap`."""
    main(sys.argv[1:])


def main(words: list[str]) -> None:
    """See above."""
    match words:
        case ["serve", number]:
            _serve(socket.socket(fileno=int(number)))
        case ["become", path]:
            _be_unit(path)
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
            _begin(packet, descriptors)
        for fd in reversed(descriptors):  # the report last: at its end, nobody is to find the server's lock with us
            os.close(fd)


def _begin(packet: bytes, descriptors: list[int]) -> None:
    """Be the server, or start the program that starts one. Never returns."""
    if Order.decode(packet).daemon:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        report, log, *rest = descriptors
        began = os.fstat(log).st_size
        program = os.fork()
        if program:
            for fd in rest:
                os.close(fd)
            _report_daemon(program, report, log, began)
            os._exit(0)
    become(packet, descriptors, lambda _: PIECES)


def _report_daemon(program: int, report: int, log: int, began: int) -> int | None:
    """Wait for the end of a program that starts a server, and report that one; its process id, if there is one.

    Args:
        program: Our child.
        report: Where to.
        log: What it prints, to be read.
        began: From there on.
    """
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    printed = os.pread(log, 1 << 12, began).decode("utf-8", "replace").strip()
    if code == 0 and printed.isdecimal():
        said = f"pid {printed}\n"
    elif code == 0:
        said = f"failed it printed {printed!r} instead of a process id\n"
    else:
        said = f"failed {os.strerror(code) if code > 0 else f'signal {-code}'}\n"
    with suppress(OSError):  # nobody reads it any more
        os.write(report, said.encode())
    return int(printed) if said.startswith("pid") else None


def _be_unit(path: str) -> None:
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        agent.connect(path)
    except OSError as error:
        raise SystemExit(f"{path}: {error.strerror}; no agent waits there: only an agent starts this unit") from error
    packet, descriptors = _receive(agent)
    if not packet:
        raise SystemExit("the agent has no order any more")
    order = Order.decode(packet)
    log, *rest = descriptors
    began = os.fstat(log).st_size
    kernel.adopt_orphans()
    ours, its = socket.socketpair()
    program = os.fork()
    if program == 0:
        asked_at = [] if order.daemon else [its.detach()]
        inherited = [agent.detach(), *descriptors, *asked_at]
        become(packet, inherited, lambda report: pieces_of_unit(_by_agent(report)))
    for fd in rest:
        os.close(fd)
    its.close()
    server = _report_daemon(program, agent.fileno(), log, began) if order.daemon else program
    agent.close()
    if server is None:
        raise SystemExit("no server was started; the agent knows why")
    look_after(server, Command(order.daemon, server) if order.daemon else Monitor(ours), log, order)


def _by_agent(report: int) -> Callable[[], int]:
    def ask() -> int:
        os.write(report, USERS)
        return int(os.read(report, 16) or b"5")  # EIO: the agent has gone

    return ask


def _receive(agent: socket.socket) -> tuple[bytes, list[int]]:
    room = socket.CMSG_SPACE(_DESCRIPTORS_MAX * array.array("i").itemsize)
    packet, ancillary, _, _ = agent.recvmsg(PACKET_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for _, _, data in ancillary:
        numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return packet, list(numbers)


def become(packet: bytes, descriptors: list[int], pieces: Callable[[int], Sequence[Piece]]) -> None:
    """Be the server of an order. Never returns.

    Args:
        packet: The order.
        descriptors: Where to report, the log, and those that the server inherits.
        pieces: Those of the jail, given the report's final number.
    """
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
        wanted = pieces_of_daemon(pieces(report)) if order.daemon else pieces(report)
        for lacking in enter(order, wanted):
            os.write(report, f"lacks {lacking}\n".encode())
        os.execve(order.program, order.arguments, order.environment)  # noqa: S606  # nosec B606
    except OSError as error:
        with suppress(OSError):  # nobody reads it any more
            os.write(
                report, f"failed {error.strerror or error}{f': {error.filename}' if error.filename else ''}\n".encode()
            )
    finally:
        os._exit(1)
