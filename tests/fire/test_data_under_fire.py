"""Writers go on while the agent is killed and started again and again: no error, and no acknowledged byte is lost.

Fifty times, or as often as you like: `pytest tests/fire/test_data_under_fire.py --restarts 500`.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fire.blocks import acknowledged, blocks_of, compare
from tests.workbench import PATIENCE, Bench, loop_disk, tap_disk

SIZE = 8 << 20
BATCHES_BETWEEN = 3


@dataclass(frozen=True)
class Writer:
    """One writer on one disk."""

    target: str
    image: Path
    fmt: str
    stream: int
    journal: Path
    process: subprocess.Popen[bytes]
    diskseq: str

    def still_writes(self, bench: Bench) -> None:
        """Wait until it has got some more acknowledgements, since the agent's death is to be during its writes."""
        before = len(self.journal.read_bytes().splitlines())
        bench.until(
            lambda: (
                self.process.poll() is not None
                or len(self.journal.read_bytes().splitlines()) >= before + BATCHES_BETWEEN
            )
        )
        assert self.process.poll() is None, f"the writer on {self.target} failed:\n{self._words()}"

    def finish(self) -> None:
        """Have it end after the batch that it is at."""
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0, f"the writer on {self.target} failed:\n{self._words()}"

    def _words(self) -> str:
        return self.journal.with_suffix(".err").read_text()


@contextmanager
def writing(bench: Bench, target: str, image: Path, fmt: str, stream: int) -> Iterator[Writer]:
    journal = bench.folder / f"{target}.journal"
    command = [sys.executable, "-m", "tests.fire.writer", str(bench.stable("vm1", target)), str(journal), str(stream)]
    with journal.with_suffix(".err").open("wb") as words:
        process = subprocess.Popen(command, stderr=words)
    try:
        bench.until(lambda: process.poll() is not None or (journal.exists() and journal.stat().st_size))
        yield Writer(target, image, fmt, stream, journal, process, diskseq(bench, target))
    finally:
        process.kill()
        process.wait()


def diskseq(bench: Bench, target: str) -> str:
    """The kernel's number of this very attachment."""
    return Path("/sys/block", bench.stable("vm1", target).resolve().name, "diskseq").read_text()


@pytest.fixture
def restarts(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--restarts"))


@pytest.mark.timeout(3600)
def test_no_acknowledged_write_is_lost_while_the_agent_is_killed(bench: Bench, restarts: int) -> None:
    images = {
        "vda": (bench.image("a.img", SIZE), "raw"),
        "vdb": (bench.image("b.img", SIZE), "raw"),
        "vdc": (bench.formatted("c.qcow", "qcow", SIZE), "qcow"),
    }
    bench.push_disks(
        "vm1",
        loop_disk("vda", images["vda"][0]),
        tap_disk("vdb", images["vdb"][0]),
        tap_disk("vdc", images["vdc"][0], "qcow"),
    )
    bench.until_guest("vm1", "Up")
    servers, seed = bench.servers(), random.randrange(2**32)
    print(f"seed {seed}")
    with ExitStack() as stack:
        writers = [
            stack.enter_context(writing(bench, target, image, fmt, stream))
            for stream, (target, (image, fmt)) in enumerate(images.items(), 1)
        ]
        kill_again_and_again(bench, writers, restarts, random.Random(seed))
        for writer in writers:
            writer.finish()
    assert bench.servers() == servers
    nothing_was_made_anew(bench)
    data_is_there(bench, writers)
    print({writer.target: len(writer.journal.read_bytes().splitlines()) for writer in writers}, "acknowledged")


def kill_again_and_again(bench: Bench, writers: list[Writer], restarts: int, dice: random.Random) -> None:
    for number in range(restarts):
        bench.stop(signal.SIGKILL)
        bench.start()
        if number % 2 and number < restarts - 1:
            time.sleep(dice.uniform(0.1, 1))  # somewhere in its start
        else:
            bench.wait_synced()
        for writer in writers:
            writer.still_writes(bench)
            assert diskseq(bench, writer.target) == writer.diskseq


def nothing_was_made_anew(bench: Bench) -> None:
    bench.until_guest("vm1", "Up")
    steps = [line["step"] for line in bench.log_lines() if line["event"] == "done"]
    assert steps == ["attach"] * 3
    assert not [line for line in bench.log_lines() if "exception" in line]


def data_is_there(bench: Bench, writers: list[Writer]) -> None:
    for writer in writers:
        written = acknowledged(writer.journal)
        compare(blocks_of(bench.stable("vm1", writer.target)), writer.stream, written)
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    bench.assert_clean()
    for writer in writers:
        raw = bench.folder / f"{writer.target}.raw"
        subprocess.run(["qemu-img", "convert", "-f", writer.fmt, "-O", "raw", writer.image, raw], check=True)
        compare(blocks_of(raw), writer.stream, acknowledged(writer.journal))
