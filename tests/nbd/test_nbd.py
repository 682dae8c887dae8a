"""Disks over the kernel's nbd: data, size, sectors, users, and above all what becomes of them without their server."""

import mmap
import os
import random
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from tests.running.tuning import allocated, discard
from tests.workbench import Bench, tap_disk

BLOCK = 4096
BLOCKS = 512


def bring_up(bench: Bench, fmt: str, image: Path, more: str = "") -> str:
    """Push vm1 with one disk; returns its device."""
    bench.push_disks("vm1", tap_disk("vda", image, fmt, more))
    device = bench.until_phase("vm1", "vda", "Up")["device_path"]
    assert device.startswith("/dev/nbd")
    return str(device)


def take_down(bench: Bench) -> None:
    """And nothing is left, neither device nor server."""
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    bench.assert_clean()
    assert not list(Path("/sys/block").glob("nbd*/pid"))


def wait_for_another(bench: Bench, servers: list[int]) -> None:
    """Wait until there is a server that is none of these."""
    bench.until(lambda: set(bench.servers()) - set(servers))


class Writer(threading.Thread):
    """Writes random blocks past the cache, remembers each, and reads them back; the first error ends it."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)  # a test that fails leaves it running
        self.error: OSError | AssertionError | None = None
        self.writes = 0
        self.going = True
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self._known: dict[int, bytes] = {}

    def run(self) -> None:
        page = mmap.mmap(-1, BLOCK)
        dice = random.Random(1)
        try:
            while self.going:
                number, data = dice.randrange(BLOCKS), os.urandom(BLOCK)
                page[:] = data
                os.pwritev(self._fd, [page], number * BLOCK)
                self._known[number] = data
                self.writes += 1
                self._check(dice.choice(list(self._known)), page)
            for number in self._known:
                self._check(number, page)
        except (OSError, AssertionError) as error:
            self.error = error
        finally:
            os.close(self._fd)

    def _check(self, number: int, page: mmap.mmap) -> None:
        os.preadv(self._fd, [page], number * BLOCK)
        assert page[:] == self._known[number], f"block {number}"

    def wait_for_more(self, bench: Bench) -> None:
        """Wait until fifty more writes were done."""
        enough = self.writes + 50
        bench.until(lambda: self.writes > enough or self.error)

    def stop(self) -> None:
        """End, and fail for what went wrong."""
        self.going = False
        self.join(60)
        if self.error:
            raise self.error


@pytest.mark.parametrize(("fmt", "qemu"), [("aio", "raw"), ("qcow2", "qcow2"), ("vhd", "vpc")])
def test_data_goes_both_ways(nbd_bench: Bench, fmt: str, qemu: str) -> None:
    bench, pattern = nbd_bench, os.urandom(1 << 20)
    before, image, after = (bench.images / name for name in ("before.raw", "image", "after.raw"))
    before.write_bytes(os.urandom(4 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", qemu, before, image], check=True)
    bring_up(bench, fmt, image)
    assert bench.stable("vm1", "vda").read_bytes()[: 4 << 20] == before.read_bytes()
    with bench.stable("vm1", "vda").open("r+b", buffering=0) as device:
        os.pwrite(device.fileno(), pattern, BLOCK)
        os.fsync(device.fileno())
    take_down(bench)
    subprocess.run(["qemu-img", "convert", "-f", qemu, "-O", "raw", image, after], check=True)
    assert after.read_bytes()[BLOCK : BLOCK + len(pattern)] == pattern


def test_one_guests_device_is_not_another_guests_disk(nbd_bench: Bench) -> None:
    bench = nbd_bench
    device = bring_up(bench, "aio", bench.image("a.img", BLOCK * BLOCKS))
    bench.push_disks("thief", f"<disk type='block'><source dev='{device}'/><target dev='vda'/></disk>")
    bench.until(lambda: "vm1/vda" in ((bench.disk("thief", "vda").get("error") or {}).get("message") or ""))
    assert bench.disk("thief", "vda")["phase"] == "Refused"
    bench.absent("thief")
    bench.until_guest("thief", "Down")
    take_down(bench)


def test_a_guest_notices_nothing_but_a_pause_when_servers_die(nbd_bench: Bench) -> None:
    bench = nbd_bench
    bring_up(bench, "aio", bench.image("a.img", BLOCK * BLOCKS))
    before = bench.disk("vm1", "vda")
    writer = Writer(bench.stable("vm1", "vda"))
    writer.start()
    for kill_agent in (False, True):
        writer.wait_for_more(bench)
        servers = bench.servers()
        if kill_agent:
            bench.stop(signal.SIGKILL)
        os.kill(servers[0], signal.SIGKILL)
        if kill_agent:
            bench.start()
        wait_for_another(bench, servers)
        writer.wait_for_more(bench)
    writer.stop()
    again = bench.until_phase("vm1", "vda", "Up")
    assert (again["device_path"], again["diskseq"]) == (before["device_path"], before["diskseq"])
    take_down(bench)


def test_a_disk_grows_under_its_guest(nbd_bench: Bench) -> None:
    bench, image = nbd_bench, nbd_bench.image("a.img", BLOCK * BLOCKS)
    device = bring_up(bench, "aio", image)
    before = bench.disk("vm1", "vda")
    writer = Writer(bench.stable("vm1", "vda"))
    writer.start()
    writer.wait_for_more(bench)
    with image.open("r+b") as file:
        file.truncate(2 * BLOCK * BLOCKS)
    bench.until(lambda: bench.disk("vm1", "vda")["size_bytes"] == 2 * BLOCK * BLOCKS or writer.error)
    writer.wait_for_more(bench)
    writer.stop()
    after = bench.until_phase("vm1", "vda", "Up")
    assert (after["device_path"], after["diskseq"]) == (device, before["diskseq"])
    assert not list((bench.runtime / "outages").glob("*"))
    with bench.stable("vm1", "vda").open("r+b", buffering=0) as disk:
        os.pwrite(disk.fileno(), b"x" * BLOCK, BLOCK * (2 * BLOCKS - 1))
    take_down(bench)


def test_a_qcow2_that_lost_its_server_tells_its_guest(nbd_bench: Bench) -> None:
    """What the server had in its tables is lost with it, so going on as if nothing had been would be a lie."""
    bench = nbd_bench
    bring_up(bench, "qcow2", bench.formatted("a.qcow2", "qcow2"))
    before = bench.disk("vm1", "vda")
    fd = os.open(bench.stable("vm1", "vda"), os.O_RDWR | os.O_DIRECT)
    try:
        (server,) = bench.servers()
        os.kill(server, signal.SIGKILL)
        bench.until(lambda: bench.servers() == [])
        with pytest.raises(OSError, match="Input/output error"):
            os.preadv(fd, [mmap.mmap(-1, BLOCK)], 0)
        bench.until(lambda: bench.disk("vm1", "vda")["phase"] in {"Lost", "InUse"})
    finally:
        os.close(fd)
    bench.until(lambda: bench.disk("vm1", "vda").get("diskseq") not in {None, before["diskseq"]})
    bench.until_phase("vm1", "vda", "Up")
    take_down(bench)


def test_a_disk_in_use_is_not_yanked(nbd_bench: Bench) -> None:
    bench = nbd_bench
    device = bring_up(bench, "aio", bench.image("a.img"))
    with Path(device).open("r+b", buffering=0) as user:
        bench.absent("vm1")
        bench.until_phase("vm1", "vda", "InUse")
        user.write(b"x" * 512)
        os.fsync(user.fileno())
    bench.until_guest("vm1", "Down")
    bench.assert_clean()


def test_an_agent_finds_its_devices_again(nbd_bench: Bench) -> None:
    bench = nbd_bench
    bring_up(bench, "aio", bench.image("a.img"))
    before = bench.disk("vm1", "vda")
    bench.restart(signal.SIGKILL)
    again = bench.until_phase("vm1", "vda", "Up")
    assert (again["device_path"], again["diskseq"]) == (before["device_path"], before["diskseq"])
    take_down(bench)


def test_large_images_and_sectors_of_four_kib(nbd_bench: Bench) -> None:
    bench = nbd_bench
    image = bench.image("a.img", 3 << 40)
    sector = "<blockio logical_block_size='4096'/>"
    bring_up(bench, "aio", image, sector)
    up = bench.disk("vm1", "vda")
    assert (up["size_bytes"], up["logical_block_size"]) == (3 << 40, 4096)
    with bench.stable("vm1", "vda").open("r+b", buffering=0) as device:
        os.pwrite(device.fileno(), b"x" * BLOCK, (3 << 40) - BLOCK)
        os.fsync(device.fileno())
    with image.open("rb") as file:
        assert os.pread(file.fileno(), BLOCK, (3 << 40) - BLOCK) == b"x" * BLOCK
    take_down(bench)


def test_what_a_guest_discards_is_given_back(nbd_bench: Bench) -> None:
    bench, image = nbd_bench, nbd_bench.image("a.img")
    bring_up(bench, "aio", image)
    with bench.stable("vm1", "vda").open("r+b", buffering=0) as device:
        device.write(b"x" * (1 << 20))
        os.fsync(device.fileno())
    assert allocated(image) == 1 << 20
    discard(bench.stable("vm1", "vda"), 0, 1 << 20)
    assert allocated(image) == 0
    take_down(bench)


def test_what_was_flushed_is_in_the_image_when_all_is_killed(nbd_bench: Bench) -> None:
    bench, pattern = nbd_bench, os.urandom(1 << 20)
    image = bench.formatted("a.qcow2", "qcow2")
    bring_up(bench, "qcow2", image)
    with bench.stable("vm1", "vda").open("r+b", buffering=0) as device:
        device.write(pattern)
        os.fsync(device.fileno())
        bench.stop(signal.SIGKILL)
        for server in bench.servers():
            os.kill(server, signal.SIGKILL)
        bench.until(lambda: bench.servers() == [])
        raw = bench.folder / "raw"
        subprocess.run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", image, raw], check=True)
        assert raw.read_bytes()[: len(pattern)] == pattern
    bench.start()
    bench.wait_synced()
    bench.until_phase("vm1", "vda", "Up")
    take_down(bench)
