"""The socket under the bus: no byte is lost, doubled or out of order, however the kernel cuts them."""

import random
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress

import pytest

from agent.bus.buffered_socket import HELD_MAX, PIECE, BufferedSocket


@pytest.fixture
def ends() -> Iterator[tuple[BufferedSocket, socket.socket]]:
    near, far = socket.socketpair()
    for end in (near, far):
        end.setblocking(False)
    with far:
        buffered = BufferedSocket(near)
        yield buffered, far
        buffered.close()


def test_single_bytes_are_read_from_one_piece(ends: tuple[BufferedSocket, socket.socket]) -> None:
    near, far = ends
    far.send(b"abcdef")
    assert [near.recv(1), near.recv(2), near.pending()] == [b"a", b"bc", 3]
    assert near.recv(10) == b"def"
    assert near.pending() == 0
    with pytest.raises(BlockingIOError):
        near.recv(1)


def test_the_end_of_the_connection_is_read_after_what_came_before(ends: tuple[BufferedSocket, socket.socket]) -> None:
    near, far = ends
    far.send(b"x")
    far.shutdown(socket.SHUT_WR)
    assert [near.recv(1), near.recv(1)] == [b"x", b""]


def test_what_is_sent_goes_out_together_and_in_order(ends: tuple[BufferedSocket, socket.socket]) -> None:
    near, far = ends
    for piece in (b"one", b"two", b"three"):
        near.send(piece)
    with pytest.raises(BlockingIOError):
        far.recv(1)
    near.flush()
    assert far.recv(PIECE) == b"onetwothree"
    assert not near.holds


def test_a_full_kernel_makes_the_sender_wait_and_loses_nothing(ends: tuple[BufferedSocket, socket.socket]) -> None:
    near, far = ends
    dice, sent, received = random.Random(1), bytearray(), bytearray()
    with suppress(BlockingIOError):
        while len(sent) < 4 * HELD_MAX:
            piece = dice.randbytes(100_000)
            near.send(piece)
            sent += piece
    assert HELD_MAX <= len(sent) < 4 * HELD_MAX  # it was made to wait
    while near.holds or len(received) < len(sent):
        received += far.recv(PIECE)
        near.flush()
    assert received == sent


def test_closing_sends_what_waits(ends: tuple[BufferedSocket, socket.socket]) -> None:
    near, far = ends
    near.send(b"farewell")
    near.close()
    assert [far.recv(PIECE), far.recv(1)] == [b"farewell", b""]


def test_a_broken_connection_is_told_of_by_reading(ends: tuple[BufferedSocket, socket.socket]) -> None:
    near, far = ends
    far.close()
    near.send(b"lost")
    near.flush()
    assert not near.holds
    assert near.recv(1) == b""


def test_bytes_that_tls_has_decrypted_count_as_pending() -> None:
    inner = ssl.create_default_context().wrap_socket(
        socket.socket(), server_hostname="x", do_handshake_on_connect=False
    )
    with inner:
        assert BufferedSocket(inner).pending() == 0
