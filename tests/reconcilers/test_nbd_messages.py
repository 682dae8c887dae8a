"""Netlink messages of the family "nbd": packed as the kernel's headers say, and no answer is too strange."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from reconcilers.blktap.nbd import messages
from reconcilers.blktap.nbd.messages import Answer, Connection

CONNECTION = Connection(
    socket_fd=7, size_bytes=1 << 41, block_size=4096, flags=0x6D, backend="tapster:0123:4567:vm1/vda", grace=300
)


def header(message: bytes) -> tuple[int, int, int, int]:
    """Length, type, flags and sequence number."""
    return struct.unpack_from("=IHHI", message)


def attributes(data: bytes) -> dict[int, bytes]:
    """By type, flags included."""
    found = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[-(-length // 4) * 4 :]
    return found


def test_a_connect_says_all_that_the_kernel_wants() -> None:
    message = messages.connect(0x1D, 5, CONNECTION)
    assert header(message) == (len(message), 0x1D, 0x5, 5)
    assert message[16:20] == bytes([1, 1, 0, 0])  # NBD_CMD_CONNECT, NBD_GENL_VERSION
    found = attributes(message[20:])
    assert found[2] == struct.pack("=Q", 1 << 41)
    assert found[3] == struct.pack("=Q", 4096)
    assert found[5] == struct.pack("=Q", 0x6D)
    assert found[6] == struct.pack("=Q", 1)  # NBD_CFLAG_DESTROY_ON_DISCONNECT
    assert found[8] == struct.pack("=Q", 300)
    assert found[10] == b"tapster:0123:4567:vm1/vda\0"
    assert attributes(attributes(found[7 | 0x8000])[1 | 0x8000]) == {1: struct.pack("=I", 7)}
    assert found.keys() == {2, 3, 5, 6, 8, 10, 7 | 0x8000}, "above all no request timeout (4) and no number (1)"


def test_changes_name_the_device_and_its_mark() -> None:
    for message, more in (
        (messages.reconnect(0x1D, 5, 3, "mark", 9), 7 | 0x8000),
        (messages.resize(0x1D, 5, 3, "mark", 1 << 30), 2),
        (messages.disconnect_on_close(0x1D, 5, 3, "mark", on=True), 6),
    ):
        assert message[16] == 3  # NBD_CMD_RECONFIGURE
        found = attributes(message[20:])
        assert (found[1], found[10]) == (struct.pack("=I", 3), b"mark\0")
        assert found.keys() == {1, 10, more}


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1))
def test_the_kernels_answers_are_read(family: int, index: int) -> None:
    def message(kind: int, body: bytes) -> bytes:
        return struct.pack("=IHHII", 16 + len(body), kind, 0, 9, 1) + body

    named = message(16, bytes(4) + struct.pack("=HHHxx", 6, 1, family))
    made = message(0x1D, bytes(4) + struct.pack("=HHI", 8, 1, index))
    refused, done = (message(2, struct.pack("=i", code) + bytes(16)) for code in (-16, 0))
    first, second, third, fourth = messages.answers(named + made + refused + done)
    assert (first.family, second.index, third.errno, fourth.errno) == (family, index, 16, 0)
    assert [each.sequence for each in (first, second, third, fourth)] == [9, 9, 9, 9]


@given(st.binary())
def test_no_answer_is_too_strange(data: bytes) -> None:
    for answer in messages.answers(data):
        assert isinstance(answer, Answer)
        assert answer.index is None or answer.index >= 0
        assert answer.family is None or answer.family >= 0
