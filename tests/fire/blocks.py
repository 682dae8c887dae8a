"""Blocks that say which they are, so that a lost, torn, stale or misplaced one is told from a good one."""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

SIZE = 4096

_HEAD = struct.Struct("=8s3Q32x")
_MAGIC = b"tapster!"
_NEVER_WRITTEN = bytes(SIZE)


def block(stream: int, index: int, generation: int) -> bytes:
    """Block `index` of one writer as it was written for the `generation`-th time."""
    head = _HEAD.pack(_MAGIC, stream, index, generation)
    body = hashlib.blake2b(head).digest()
    return head + body * ((SIZE - len(head)) // len(body))


def generation_of(data: bytes, stream: int, index: int) -> int:
    """Which generation of a block this is; 0 if it was never written.

    Raises:
        AssertionError: It is none of them.
    """
    if data == _NEVER_WRITTEN:
        return 0
    magic, _, _, generation = _HEAD.unpack_from(data)
    assert magic == _MAGIC, f"block {index} has lost its head: {data[:64]!r}"
    assert data == block(stream, index, generation), f"block {index} is torn or of another place: {data[:64]!r}"
    return int(generation)


def acknowledged(journal: Path) -> dict[int, int]:
    """The last generation of each block whose fsync(2) had returned."""
    rows = (map(int, line.split()) for line in journal.read_text().splitlines())
    return {index: generation for generation, *indices in rows for index in indices}


def compare(blocks: Iterable[bytes], stream: int, written: dict[int, int]) -> None:
    """Check that every block is the one that was acknowledged last, and that there are no others."""
    found = {index: generation_of(data, stream, index) for index, data in enumerate(blocks)}
    wrong = {index: (got, written.get(index, 0)) for index, got in found.items() if got != written.get(index, 0)}
    assert not wrong, f"of {len(written)} blocks, these are (found, acknowledged): {wrong}"
    assert written.keys() <= found.keys()


def blocks_of(path: Path) -> Iterator[bytes]:
    """The blocks of a raw image."""
    with path.open("rb") as file:
        while data := file.read(SIZE):
            yield data
