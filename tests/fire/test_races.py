"""Others make and take loop devices while ours come and go: everybody gets what is theirs, and nothing is left."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from reconcilers.loop import minors
from tests.workbench import PATIENCE, Bench, loop_disk, tap_disk

DISKS = 50
TAPS = 3
ROUNDS = 2
RIVALS = 2


@contextmanager
def rival(folder: Path) -> Iterator[None]:
    """Another process that takes and gives back loop devices; it must find its own untouched, and get some."""
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fire.foreign", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield
        process.terminate()
        count, words = process.communicate(timeout=2 * PATIENCE)
        assert process.returncode == 0, words
        assert int(count) > 0
    finally:
        process.kill()
        process.wait()
        for device in bound_below(folder):
            subprocess.run(["losetup", "-d", device], check=False, capture_output=True)


@contextmanager
def bystander(image: Path) -> Iterator[None]:
    """A foreign device that is there all the time, and must be the same in the end."""
    with image.open("wb") as file:
        file.truncate(1 << 20)
    command = ["losetup", "-f", "--show", str(image)]
    for _ in range(20):
        made = subprocess.run(command, check=False, capture_output=True, text=True)
        if made.returncode == 0:
            break
    device = made.stdout.strip()
    diskseq = Path("/sys/block", Path(device).name, "diskseq")
    try:
        before = diskseq.read_text()
        yield
        assert bound_below(image.parent) == {device}
        assert diskseq.read_text() == before
    finally:
        subprocess.run(["losetup", "-d", device], check=False, capture_output=True)


def bound_below(folder: Path) -> set[str]:
    """Loop devices over files in that folder, whoever made them."""
    return {path for path, backing in backing_files().items() if backing.startswith(f"{folder}/")}


def backing_files() -> dict[str, str]:
    """Every bound loop device of the host with its file."""
    found = dict[str, str]()
    for minor in minors.bound():
        try:
            backing = Path(f"/sys/block/loop{minor}/loop/backing_file").read_text()
        except OSError:  # somebody took it down meanwhile
            continue
        found[f"/dev/loop{minor}"] = backing.strip()
    return found


def counted(bench: Bench) -> dict[str, Any]:
    """The latest host status."""
    payloads = [payload for topic, payload in list(bench.messages) if topic == f"{bench.topics}/status/host"]
    return dict(json.loads(payloads[-1])) if payloads else {}


@pytest.mark.timeout(1200)
def test_disks_come_and_go_while_others_take_loop_devices(bench: Bench) -> None:
    loops = {f"loop-{n}": bench.image(f"loop-{n}.img") for n in range(DISKS)}
    taps = {f"tap-{n}": bench.image(f"tap-{n}.img") for n in range(TAPS)}
    for folder in ("still-1", "still-2"):
        (bench.folder / folder).mkdir()
    with ExitStack() as stack:
        for folder in ("still-1", "still-2"):
            stack.enter_context(bystander(bench.folder / folder / "image"))
        for number in range(RIVALS):
            stack.enter_context(rival(bench.folder / f"rival-{number}"))
        for _ in range(ROUNDS):
            for guest, image in (loops | taps).items():
                bench.push_disks(guest, (loop_disk if guest in loops else tap_disk)("vda", image))
            all_are(bench, loops | taps, "Up")
            each_has_its_own_image(bench, loops)
            assert len(bench.loops()) == DISKS + TAPS
            bench.resync()
            bench.until(lambda: counted(bench).get("disks_by_phase") == {"Up": DISKS + TAPS})
            for guest in loops | taps:
                bench.absent(guest)
            all_are(bench, loops | taps, "Down")
    bench.assert_clean()
    assert bound_below(bench.folder) == set()
    assert not [line for line in bench.log_lines() if "exception" in line]


def all_are(bench: Bench, guests: dict[str, Path], phase: str) -> None:
    for guest in guests:
        bench.until_guest(guest, phase)


def each_has_its_own_image(bench: Bench, images: dict[str, Path]) -> None:
    backing = backing_files()
    assert {guest: backing[str(bench.stable(guest, "vda").readlink())] for guest in images} == {
        guest: str(image) for guest, image in images.items()
    }
