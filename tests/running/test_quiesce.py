"""Disks that are held still while their images are copied: nothing is written, nothing is lost, and all goes on."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.workbench import AGENT, Bench, loop_disk, tap_disk

BLOCK = 4096
BLOCKS = 256


class Writer(threading.Thread):
    """Writes one block after the other, each with its number all over it, and flushes; remembers what is done."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.done: dict[int, int] = {}
        self.going = True
        self.error: OSError | None = None
        self._path = path

    def run(self) -> None:
        try:
            with self._path.open("r+b", buffering=0) as device:
                count = 0
                while self.going:
                    count += 1
                    os.pwrite(device.fileno(), count.to_bytes(8, "big") * (BLOCK // 8), count % BLOCKS * BLOCK)
                    os.fsync(device.fileno())
                    self.done[count % BLOCKS] = count
        except OSError as error:
            self.error = error

    @property
    def count(self) -> int:
        return max(self.done.values(), default=0)

    def wait_for_more(self, bench: Bench) -> None:
        enough = self.count + 20
        bench.until(lambda: self.count > enough or self.error)


@contextmanager
def writing(bench: Bench) -> Iterator[Writer]:
    writer = Writer(bench.stable("vm1", "vda"))
    writer.start()
    try:
        writer.wait_for_more(bench)
        yield writer
    finally:
        writer.going = False
        writer.join(60)
    assert writer.error is None


def tapster(bench: Bench, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*AGENT, *words, "--config", str(bench.config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def interrupted(bench: Bench, requests: Path, *words: str) -> int:
    """Ctrl-C while the agent does not come to what is asked of it; returns the exit code."""
    bench.send(signal.SIGSTOP)
    try:
        command = [*AGENT, *words, "--config", str(bench.config)]
        asking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        bench.until(lambda: any(requests.iterdir()))
        asking.send_signal(signal.SIGINT)
        asking.communicate()
        return asking.returncode
    finally:
        bench.send(signal.SIGCONT)


def reason(bench: Bench) -> str | None:
    """Why the disk is not up, if it is told so."""
    return (bench.disk("vm1", "vda").get("error") or {}).get("reason")


def holds(image: Path, fmt: str, writes: dict[int, int]) -> None:
    """An image, or a copy of one, has these writes in it or newer ones, and no block that is torn."""
    raw = image.with_suffix(".converted")
    subprocess.run(["qemu-img", "convert", "-U", "-f", fmt, "-O", "raw", image, raw], check=True)
    content = raw.read_bytes()
    for place, count in writes.items():
        found = content[place * BLOCK : (place + 1) * BLOCK]
        assert found == found[:8] * (BLOCK // 8)
        assert int.from_bytes(found[:8], "big") >= count


@pytest.mark.parametrize(("fmt", "qemu"), [("aio", "raw"), ("qcow2", "qcow2")])
def test_a_held_disk_is_not_written_and_its_copy_has_every_flushed_write(bench: Bench, fmt: str, qemu: str) -> None:
    image, copy = bench.formatted("a.img", qemu), bench.folder / "copy"
    bench.push_disks("vm1", tap_disk("vda", image, fmt))
    up = bench.until_phase("vm1", "vda", "Up")
    with writing(bench) as writer:
        flushed = dict(writer.done)
        held = tapster(bench, "quiesce", "vm1", "--for", "600")
        assert (held.returncode, held.stderr) == (0, "")
        before, content = image.stat(), image.read_bytes()
        told = bench.until_phase("vm1", "vda", "Degraded")
        assert (told["error"]["reason"], told["size_bytes"]) == ("Quiesced", up["size_bytes"])
        assert held.stdout.split("until ")[1].strip() in told["error"]["message"]
        for kill in (signal.SIGKILL, signal.SIGTERM):  # the server's attributes are not in the kernel's cache any more
            bench.restart(kill)
        shutil.copyfile(image, copy)
        after = image.stat()
        assert (after.st_mtime_ns, copy.read_bytes()) == (before.st_mtime_ns, content)
        bench.until(lambda: reason(bench) == "Quiesced")
        assert tapster(bench, "resume", "vm1").returncode == 0
        writer.wait_for_more(bench)
        holds(copy, qemu, flushed)
    assert bench.until_phase("vm1", "vda", "Up")["diskseq"] == up["diskseq"]
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    holds(image, qemu, writer.done)
    bench.assert_clean()


def test_a_forgotten_disk_goes_on_by_itself_and_its_copy_is_not_trusted(bench: Bench) -> None:
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    bench.until_phase("vm1", "vda", "Up")
    with writing(bench) as writer:
        assert tapster(bench, "quiesce", "vm1", "vda", "--for", "3").returncode == 0
        bench.stop(signal.SIGKILL)
        time.sleep(3)  # until the hold is over, with no agent to end it
        bench.start()
        writer.wait_for_more(bench)
    bench.until_phase("vm1", "vda", "Up")
    late = tapster(bench, "resume", "vm1")
    assert late.returncode == 1
    assert "may be torn" in late.stderr


@pytest.mark.parametrize("seconds", [2, 600])
def test_a_held_disk_goes_on_although_it_is_not_to_be_touched_any_more(bench: Bench, seconds: int) -> None:
    image = bench.image("a.img")
    bench.push_disks("vm1", tap_disk("vda", image))
    up = bench.until_phase("vm1", "vda", "Up")
    with writing(bench) as writer:
        assert tapster(bench, "quiesce", "vm1", "--for", str(seconds)).returncode == 0
        bench.push_disks("vm1", tap_disk("vda", image, more="<encryption format='luks'/>"))
        bench.until_phase("vm1", "vda", "Refused")
        assert seconds == 2 or tapster(bench, "resume", "vm1").returncode == 0
        writer.wait_for_more(bench)
    bench.push_disks("vm1", tap_disk("vda", image))
    assert bench.until_phase("vm1", "vda", "Up")["diskseq"] == up["diskseq"]


def test_who_is_interrupted_asks_no_more(bench: Bench) -> None:
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    bench.until_phase("vm1", "vda", "Up")
    assert interrupted(bench, bench.runtime / "holds", "quiesce", "vm1") != 0
    assert not list((bench.runtime / "holds").iterdir())


def test_a_held_disk_is_taken_down_only_when_it_goes_on(bench: Bench) -> None:
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    bench.until_phase("vm1", "vda", "Up")
    assert tapster(bench, "quiesce", "vm1", "--for", "8").returncode == 0
    bench.until_phase("vm1", "vda", "Degraded")
    bench.absent("vm1")
    bench.until(lambda: bench.statuses["vm1"]["observed_generation"] is None and bench.servers())
    bench.until_guest("vm1", "Down")
    bench.assert_clean()


def test_what_can_not_be_held_is_refused_and_says_why(bench: Bench) -> None:
    native = "<driver name='tap2' type='aio' cache='none' io='native'/>"
    image = bench.image("c.img")
    disks = [
        loop_disk("vda", bench.image("a.img")),
        tap_disk("vdb", bench.image("b.img")),
        f"<disk type='file'>{native}<source file='{image}'/><target dev='vdc'/></disk>",
    ]
    bench.push_disks("vm1", *disks)
    bench.until_guest("vm1", "Up")
    for words, why in (
        (["vm1"], "vda is on loop"),
        (["vm1", "vdc"], "vdc has io='native'"),
        (["vm1", "vdz"], "vdz of it is not up here"),
        (["vm2"], "any disk of it is not up here"),
    ):
        refused = tapster(bench, "quiesce", *words)
        assert refused.returncode == 1
        assert why in refused.stderr
    for words, why in ((["vm1", "vdz"], "vdz of it is not up"), (["vm2"], "any disk of it is not up")):
        typo = tapster(bench, "resume", *words)
        assert typo.returncode == 1
        assert why in typo.stderr
    bench.stop()
    assert "no agent runs here" in tapster(bench, "quiesce", "vm1", "vdb").stderr
    assert not list((bench.runtime / "holds").iterdir())
