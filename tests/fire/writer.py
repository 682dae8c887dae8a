"""A program that writes numbered, checksummed blocks until SIGTERM, and records every fsync(2) that returned.

    python -m tests.fire.writer DEVICE JOURNAL STREAM

Blocks go past the page cache of the device, and each batch is read back at once. Any error ends it with a traceback
and a status other than 0.
"""

import mmap
import os
import random
import signal
import sys
from pathlib import Path

from tests.fire.blocks import SIZE, block, generation_of

BATCH = 8


def main() -> None:
    """Write until told to stop."""
    device, journal, stream = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    stopped = list[int]()
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    fd = os.open(device, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    count = os.lseek(fd, 0, os.SEEK_END) // SIZE
    dice, generation = random.Random(stream), 0
    buffer = mmap.mmap(-1, SIZE)  # page-aligned, as direct I/O wants it
    with journal.open("w", buffering=1) as record:
        while not stopped:
            generation += 1
            indices = dice.sample(range(count), BATCH)
            for index in indices:
                buffer[:] = block(stream, index, generation)
                _whole(os.pwrite(fd, buffer, index * SIZE))
            os.fsync(fd)
            record.write(f"{generation} {' '.join(map(str, indices))}\n")
            for index in indices:
                _whole(os.preadv(fd, [buffer], index * SIZE))
                assert generation_of(bytes(buffer), stream, index) == generation, f"block {index} reads as an older one"


def _whole(count: int) -> None:
    if count != SIZE:
        raise OSError(f"{count} of {SIZE} bytes")


if __name__ == "__main__":
    main()
