"""Somebody else on the host, who makes and takes loop devices all the time and sees whether anybody touches them.

    python -m tests.fire.foreign FOLDER

Goes on until SIGTERM, then prints how many devices it has had. It ends with a traceback and a status other than 0 if
one of them was not what it had made of it.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SECTOR = 512
SIZE = 1 << 20
HAD_FOR = 0.004
PATIENCE = 60.0


def main() -> None:
    """Take a device, write to it, look after a moment, let it go; again and again."""
    stopped = list[int]()
    signal.signal(signal.SIGTERM, lambda number, _frame: stopped.append(number))
    count = 0
    for number in itertools.count():
        if stopped:
            break
        count += _have_one(Path(sys.argv[1]) / f"foreign-{number % 8}", number)
    sys.stdout.write(f"{count}\n")


def _have_one(image: Path, number: int) -> bool:
    with image.open("wb") as file:
        file.truncate(SIZE)
    made = subprocess.run(["losetup", "-f", "--show", image], check=False, capture_output=True, text=True)
    if made.returncode:  # someone was quicker, which losetup takes for an error
        return False
    device = Path(made.stdout.strip())
    before = _facts(device)
    pattern = number.to_bytes(8, "little") * (SECTOR // 8)
    _write(device, pattern)
    time.sleep(HAD_FOR)
    assert _facts(device) == before, f"{device} was touched: {before} became {_facts(device)}"
    assert before[0] == str(image), f"{device} is on {before[0]} and not on {image}"
    assert image.read_bytes()[:SECTOR] == pattern, f"what was written to {device} is not in {image}"
    subprocess.run(["losetup", "-d", device], check=True, capture_output=True)
    _gone(device, before)
    return True


def _facts(device: Path) -> tuple[str, str, str]:
    sysfs = Path("/sys/block", device.name)
    names = ("loop/backing_file", "diskseq", "size")
    backing, diskseq, size = ((sysfs / name).read_text().strip() for name in names)
    return backing, diskseq, size


def _write(device: Path, pattern: bytes) -> None:
    fd = os.open(device, os.O_WRONLY)
    try:
        os.write(fd, pattern)
        os.fsync(fd)
    finally:
        os.close(fd)


def _gone(device: Path, facts: tuple[str, str, str]) -> None:
    """Wait for its end, which is late if somebody looked at it at that moment."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if _facts(device) != facts:
                return
        except OSError:
            return
        time.sleep(0.001)
    raise TimeoutError(f"{device} stays although it was detached: {facts}")


if __name__ == "__main__":
    main()
