"""A socket of the kernel's nbd that systemd has opened, and that an agent before us may have asked at."""

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from reconcilers.blktap.nbd.control import SOCKET, Netlink
from reconcilers.blktap.nbd.messages import get_family
from reconcilers.handed_over import handed_over

GENERIC, CONTROL_FAMILY = 16, 16


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, GENERIC) as opened:
        opened.bind((0, 0))
        names = [*["another"] * (opened.fileno() - 3), SOCKET]
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", str(len(names)))
        monkeypatch.setenv("LISTEN_FDNAMES", ":".join(names))
        yield opened


def about_the_control_family(sequence: int) -> bytes:
    """A question that every kernel has another answer to than to ours."""
    name = b"nlctrl\0\0"
    attribute = struct.pack("=HH", 4 + len(name) - 1, 2) + name
    whole = struct.pack("=BBH", 3, 1, 0) + attribute
    return struct.pack("=IHHII", 16 + len(whole), GENERIC, 5, sequence, 0) + whole


def test_what_was_answered_to_somebody_before_us_is_not_taken_for_our_answer(kernel: socket.socket) -> None:
    kernel.send(about_the_control_family(1))  # the number that we begin with, too
    taken: list[int] = []

    def message(family: int, sequence: int) -> bytes:
        taken.append(family)
        return get_family(sequence)

    try:
        Netlink().ask(message)
    except FileNotFoundError:
        assert not taken, "there is no nbd here, and the answer was another one's"
    assert CONTROL_FAMILY not in taken
    with pytest.raises(BlockingIOError):
        kernel.recv(4096, socket.MSG_DONTWAIT)


def test_it_is_ours_alone(kernel: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that we start inherits the variables and not the files."""
    assert handed_over(SOCKET) == kernel.fileno()
    assert handed_over("unknown") is None
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
    assert handed_over(SOCKET) is None
