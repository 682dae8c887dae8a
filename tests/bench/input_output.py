"""I/O through tapster's devices beside those that are made by hand, measured with fio."""

import json
import os
import random
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import by_hand
from tests.bench.by_hand import Device
from tests.bench.figures import Figure
from tests.bench.host import measured_host
from tests.workbench import domain, loop_disk


@dataclass(frozen=True, slots=True)
class Turns:
    """How often each device is measured, in turns, as a machine has better and worse moments; and how long, in s."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Job:
    """What fio does."""

    name: str
    kind: str
    block: str


JOBS = (
    Job("4 KiB reads", "randread", "4k"),
    Job("4 KiB writes", "randwrite", "4k"),
    Job("1 MiB reads", "read", "1m"),
    Job("1 MiB writes", "write", "1m"),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways to one device.

    Attributes:
        what: tapster's, in words.
        ours: Makes it.
        against: The other, in words.
        theirs: Makes it; where there are several, the one with the best median counts.
    """

    what: str
    ours: Device
    against: str
    theirs: Sequence[Device]


def loop_figures(turns: Turns, skipped: list[str]) -> list[Figure]:
    """A loop disk against losetup, buffered and direct, whichever is faster."""
    with by_hand.workplace() as folder, by_hand.loop_nodes(8):
        image = full_image(folder)
        scripts = ["losetup -f --show $1", "losetup -f --direct-io=on --show $1"]
        theirs = [by_hand.by_shell(script, image) for script in scripts]
        pair = Comparison("loop disk", _of_agent(image), "losetup, buffered or direct", theirs)
        return io_figures(pair, turns, skipped)


def io_figures(pair: Comparison, turns: Turns, skipped: list[str]) -> list[Figure]:
    """Every job on both devices."""
    if shutil.which("fio") is None:
        skipped.append(f"I/O of {pair.what}: there is no fio; apt-get install fio")
        return []
    return [_figure(pair, job, turns) for job in JOBS]


def full_image(folder: Path) -> Path:
    """A raw image without holes."""
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.write(os.urandom(1 << 20) * 256)
        os.fsync(file)  # its way to the disk is no part of what is measured
    return image


def _figure(pair: Comparison, job: Job, turns: Turns) -> Figure:
    ways = (pair.ours, *pair.theirs)
    speeds = {way: list[float]() for way in ways}
    for _ in range(turns.count):
        for way in random.sample(ways, len(ways)):  # nobody is always the one behind another's writes
            speeds[way].append(_measured(way, job, turns.seconds))
    return Figure(
        name=f"{pair.what}, {job.name}",
        unit="MB/s",
        values=speeds[pair.ours],
        against=pair.against,
        baseline=max((speeds[way] for way in pair.theirs), key=statistics.median),
        target="≥ 0.95",
        note="fio on the device: direct=1, libaio, depth 16" if job is JOBS[0] else "",
    )


def _measured(device: Device, job: Job, seconds: float) -> float:
    with device() as path:
        os.sync()  # or what was written before would still be on its way
        command = ["fio", "--name=job", f"--filename={path}", f"--rw={job.kind}", f"--bs={job.block}", "--direct=1"]
        command += ["--ioengine=libaio", "--iodepth=16", "--time_based", f"--runtime={seconds:g}"]
        command += ["--allow_mounted_write=0", "--output-format=json"]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode != 0:
        raise RuntimeError(f"fio on {path} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    [result] = json.loads(ended.stdout[ended.stdout.index("{") :])["jobs"]
    return float(result["read" if "read" in job.kind else "write"]["bw_bytes"]) / 1e6


def _of_agent(image: Path) -> Device:
    @contextmanager
    def device() -> Iterator[Path]:
        with measured_host() as host:
            host.push_all({"vm1": domain("vm1", loop_disk("vda", image))})
            host.start()
            host.wait_up(1)
            yield host.stable("vm1", "vda")

    return device
