"""I/O through the agent's devices beside the same chain made by hand, measured with fio."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import by_hand
from tests.bench.figures import Figure
from tests.bench.host import measured_host
from tests.workbench import domain, loop_disk, tap_disk

SIZE = 256 << 20

TURNS = 3
"""Each device is measured so often, in turns: a machine has better and worse moments."""

TAP = """
export=$1.export
: >"$export"
qemu-storage-daemon --daemonize --pidfile "$1.pid" \
    --blockdev driver=file,node-name=image,filename="$1" --blockdev driver=raw,node-name=format,file=image \
    --export type=fuse,id=disk,node-name=format,mountpoint="$export",writable=on
losetup -f --show "$export"
"""
"""A raw image through a storage daemon, written as the manual pages have it."""

Device = Callable[[], AbstractContextManager[Path]]


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


def io_figures(seconds: float, skipped: list[str]) -> list[Figure]:
    """A loop disk against losetup, buffered and direct, whichever is faster; a tap against the same server by hand."""
    if shutil.which("fio") is None:
        skipped.append("I/O: there is no fio; apt-get install fio")
        return []
    with by_hand.workplace() as folder, by_hand.loop_nodes(8):
        image = folder / "disk.img"
        image.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
        ours = _ours(loop_disk("vda", image))
        loops = [_by_shell("losetup -f --show $1", image), _by_shell("losetup -f --direct-io=on --show $1", image)]
        tap, taps = _ours(tap_disk("vda", image)), [_by_shell(TAP, image)]
        return [
            figure
            for job in JOBS
            for figure in (
                _figure("loop disk", job, seconds, ours, loops, against="losetup, buffered or direct"),
                _figure("blktap aio disk", job, seconds, tap, taps, against="storage daemon + losetup"),
            )
        ]


def _figure(what: str, job: Job, seconds: float, ours: Device, others: list[Device], *, against: str) -> Figure:
    mine, best = list[float](), list[float]()
    for _ in range(TURNS):
        mine.append(_measured(ours, job, seconds))
        best.append(max(_measured(other, job, seconds) for other in others))
    note = "fio on the device: direct=1, libaio, depth 16" if job is JOBS[0] else ""
    name = f"{what}, {job.name}"
    return Figure(name=name, unit="MB/s", values=mine, against=against, baseline=best, target="≥ 0.95", note=note)


def _measured(device: Device, job: Job, seconds: float) -> float:
    with device() as path:
        command = ["fio", "--name=job", f"--filename={path}", f"--rw={job.kind}", f"--bs={job.block}", "--direct=1"]
        command += ["--ioengine=libaio", "--iodepth=16", "--time_based", f"--runtime={seconds:g}"]
        command += ["--allow_mounted_write=0", "--output-format=json"]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode != 0:
        raise RuntimeError(f"fio on {path} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    [result] = json.loads(ended.stdout[ended.stdout.index("{") :])["jobs"]
    return float(result["read" if "read" in job.kind else "write"]["bw_bytes"]) / 1e6


def _ours(disk: str) -> Device:
    @contextmanager
    def device() -> Iterator[Path]:
        with measured_host() as host:
            host.push_all({"vm1": domain("vm1", disk)})
            host.start()
            host.wait_up(1)
            yield host.stable("vm1", "vda")

    return device


def _by_shell(script: str, image: Path) -> Device:
    @contextmanager
    def device() -> Iterator[Path]:
        made = subprocess.run(["sh", "-ec", script, "sh", image], check=True, capture_output=True, text=True)
        try:
            yield Path(made.stdout.strip())
        finally:
            by_hand.take_down(image.parent)

    return device
