"""Disks behind a tapdisk, with a storage daemon as its relay to FUSE: they come, carry data, survive, go."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from reconcilers.blktap.tap import TapFolder
from tests.tapdisk.host import TapdiskHost
from tests.workbench import AGENT, PATIENCE, tap_disk


def write(path: Path, data: bytes, offset: int = 0) -> None:
    """Write through a device, and flush."""
    with path.open("r+b", buffering=0) as device:
        os.pwrite(device.fileno(), data, offset)
        os.fsync(device.fileno())


def bring_up(host: TapdiskHost, fmt: str, image: Path, more: str = "") -> None:
    """Push vm1 with one disk, and wait until tapdisk serves it."""
    host.bench.push_disks("vm1", tap_disk("vda", image, fmt, more))
    up = host.bench.until_phase("vm1", "vda", "Up")
    assert up["effective"]["server"] == "tapdisk"


def take_down(host: TapdiskHost) -> None:
    """And nothing is left."""
    host.bench.absent("vm1")
    host.bench.until_guest("vm1", "Down")
    host.assert_clean()


@pytest.mark.parametrize(("fmt", "qemu"), [("aio", "raw"), ("vhd", "vpc")])
def test_data_goes_both_ways(tapdisk_host: TapdiskHost, fmt: str, qemu: str) -> None:
    bench, pattern = tapdisk_host.bench, os.urandom(1 << 20)
    image, before = bench.images / f"a.{fmt}", bench.images / "before.raw"
    before.write_bytes(os.urandom(8 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", qemu, before, image], check=True)
    bring_up(tapdisk_host, fmt, image)
    assert bench.stable("vm1", "vda").read_bytes()[: 8 << 20] == before.read_bytes()
    write(bench.stable("vm1", "vda"), pattern, 4096)
    take_down(tapdisk_host)
    after = bench.images / "after.raw"
    subprocess.run(["qemu-img", "convert", "-f", qemu, "-O", "raw", image, after], check=True)
    assert after.read_bytes()[4096 : 4096 + len(pattern)] == pattern


def test_what_tapdisk_lacks_the_storage_daemon_serves(tapdisk_host: TapdiskHost) -> None:
    bench = tapdisk_host.bench
    limits = "<iotune><total_iops_sec>5000</total_iops_sec></iotune>"
    bench.push_disks(
        "vm1",
        tap_disk("vda", bench.formatted("a.qcow", "qcow"), "qcow"),
        tap_disk("vdb", bench.image("b.img"), "aio", limits),
        tap_disk("vdc", bench.image("c.img"), "aio"),
    )
    bench.until_guest("vm1", "Up")
    servers = [bench.disk("vm1", target)["effective"]["server"].split()[0] for target in ("vda", "vdb", "vdc")]
    assert servers == ["qemu-storage-daemon", "qemu-storage-daemon", "tapdisk"]
    take_down(tapdisk_host)


def test_a_tapdisk_outlives_the_agent_and_is_found_again(tapdisk_host: TapdiskHost) -> None:
    bench = tapdisk_host.bench
    bring_up(tapdisk_host, "aio", bench.image("a.img"))
    before, pids = bench.disk("vm1", "vda"), tapdisk_host.tapdisks()
    for number in (signal.SIGKILL, signal.SIGTERM):
        bench.restart(number)
        again = bench.until_phase("vm1", "vda", "Up")
        assert (again["diskseq"], tapdisk_host.tapdisks()) == (before["diskseq"], pids)
    take_down(tapdisk_host)


@pytest.mark.parametrize("victim", ["tapdisk", "relay"])
def test_a_killed_server_is_built_anew_and_leaves_nothing(tapdisk_host: TapdiskHost, victim: str) -> None:
    bench = tapdisk_host.bench
    bring_up(tapdisk_host, "aio", bench.image("a.img"))
    before, (tapdisk,) = bench.disk("vm1", "vda"), tapdisk_host.tapdisks()
    (relay,) = bench.servers()
    os.kill(tapdisk if victim == "tapdisk" else relay, signal.SIGKILL)
    bench.until(lambda: bench.disk("vm1", "vda").get("diskseq") not in {None, before["diskseq"]})
    bench.until_phase("vm1", "vda", "Up")
    assert tapdisk not in tapdisk_host.tapdisks()
    assert tapdisk_host.sockets_of(tapdisk) == []
    write(bench.stable("vm1", "vda"), b"x" * 4096)
    take_down(tapdisk_host)


def test_a_stopped_tapdisk_holds_nobody_up(tapdisk_host: TapdiskHost) -> None:
    """Neither a new disk nor a new agent: a listing of all tapdisks would hang here."""
    bench = tapdisk_host.bench
    bring_up(tapdisk_host, "aio", bench.image("a.img"))
    (stopped,) = tapdisk_host.tapdisks()
    os.kill(stopped, signal.SIGSTOP)
    try:
        bench.push_disks("vm2", tap_disk("vda", bench.image("b.img")))
        bench.until_phase("vm2", "vda", "Up")
        bench.restart(signal.SIGKILL)
        bench.until_phase("vm2", "vda", "Up")
    finally:
        os.kill(stopped, signal.SIGCONT)
    bench.absent("vm2")
    bench.until_guest("vm2", "Down")
    take_down(tapdisk_host)


def test_an_image_that_tapdisk_would_cut_is_refused(tapdisk_host: TapdiskHost) -> None:
    bench = tapdisk_host.bench
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img", 1000)))
    refused = bench.until_phase("vm1", "vda", "Refused")
    assert refused["error"]["reason"] == "ImageUnaligned"
    bench.push_disks("vm1", tap_disk("vda", bench.image("b.img", 0)))
    bench.until(lambda: (bench.disk("vm1", "vda").get("error") or {}).get("reason") == "ImageEmpty")
    tapdisk_host.assert_clean()


def test_a_read_only_disk_refuses_writes(tapdisk_host: TapdiskHost) -> None:
    bring_up(tapdisk_host, "aio", tapdisk_host.bench.image("a.img"), "<readonly/>")
    with pytest.raises(OSError, match=r"Operation not permitted|Read-only|Permission"):
        write(tapdisk_host.bench.stable("vm1", "vda"), b"x" * 512)
    take_down(tapdisk_host)


def test_no_second_tap_gets_the_image(tapdisk_host: TapdiskHost) -> None:
    """The real tapdisk would take it; the lock that it inherited keeps others off, QEMU among them."""
    bench, image = tapdisk_host.bench, tapdisk_host.bench.image("a.img")
    bring_up(tapdisk_host, "aio", image)
    bench.push_disks("vm2", tap_disk("vda", image))
    refused = bench.until_phase("vm2", "vda", "Refused")
    assert refused["error"]["reason"] == "SourceInUse"
    done = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", image], capture_output=True, check=False)
    assert b"lock" in done.stderr
    bench.absent("vm2")
    bench.until_guest("vm2", "Down")
    take_down(tapdisk_host)


@pytest.mark.parametrize(
    ("how", "reason", "said"),
    [
        ("fail allocate 28", "ServerFailed", "No space left on device"),
        ("garbage allocate", "ServerFailed", "instead of a marker"),
        ("fail spawn 71", "ServerFailed", "Protocol error"),
        ("lose spawn 11", "ServerFailed", "Resource temporarily unavailable"),
        ("garbage spawn", "ServerFailed", "instead of a process id"),
        ("hang spawn", "TimedOut", "no answer within 8 s"),
        ("fail attach 71", "ServerFailed", "Protocol error"),
        ("hang attach", "TimedOut", "no answer within 8 s"),
        ("fail open 5", "ServerFailed", "Input/output error"),
        ("lose open 71", "ServerFailed", "Protocol error"),
        ("hang open", "TimedOut", "no answer within 8 s"),
    ],
)
def test_what_goes_wrong_when_a_tap_starts_is_told_and_leaves_nothing(
    double: TapdiskHost, how: str, reason: str, said: str
) -> None:
    bench = double.bench
    double.misbehave(how)
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    failed = bench.until_phase("vm1", "vda", "Failed")
    assert failed["error"]["reason"] == reason
    assert said in failed["error"]["message"]
    double.behave()
    bench.until_phase("vm1", "vda", "Up")
    take_down(double)


@pytest.mark.parametrize("how", ["fail close 71", "lose close 71", "hang detach", "lose detach 71", "slow close"])
def test_a_teardown_that_fails_is_done_again(double: TapdiskHost, how: str) -> None:
    bench = double.bench
    bring_up(double, "aio", bench.image("a.img"))
    double.misbehave(how)
    bench.absent("vm1")
    if how.startswith(("fail", "hang")):
        bench.until(lambda: [line for line in bench.log_lines() if line["event"] == "not as desired"])
    double.behave()
    bench.until_guest("vm1", "Down")
    double.assert_clean()


def test_a_minor_that_nobody_was_told_of_is_named_at_the_next_start(double: TapdiskHost) -> None:
    """The one thing that is left when an agent is killed: `allocate` tells of a minor only after it has taken it."""
    bench = double.bench
    double.misbehave("hang allocate")
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    bench.until(lambda: double.under_way("allocate"))
    bench.stop(signal.SIGKILL)
    double.behave()
    bench.until(lambda: not double.under_way("allocate"))
    (orphan,) = double.minors()
    bench.start()
    bench.until_phase("vm1", "vda", "Up")
    told = [line for line in bench.log_lines() if line["event"] == "a minor is taken that no tapdisk serves"]
    assert [Path(line["marker"]).name for line in told] == [orphan]
    (double.folder / "tapdisk" / orphan).unlink()
    take_down(double)


@pytest.mark.parametrize("subcommand", ["spawn", "attach", "open"])
def test_an_agent_killed_while_it_makes_a_tap_leaves_none_behind(double: TapdiskHost, subcommand: str) -> None:
    """What it had asked for is even done afterwards, when nobody waits for it any more."""
    bench = double.bench
    double.misbehave(f"hang {subcommand}")
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    bench.until(lambda: double.under_way(subcommand))
    bench.stop(signal.SIGKILL)
    double.behave()
    bench.start()
    bench.until_phase("vm1", "vda", "Up")
    write(bench.stable("vm1", "vda"), b"x" * 4096)
    take_down(double)


@pytest.mark.parametrize("subcommand", ["close", "detach", "free"])
def test_an_agent_killed_while_it_ends_a_tap_leaves_none_behind(double: TapdiskHost, subcommand: str) -> None:
    bench = double.bench
    bring_up(double, "aio", bench.image("a.img"))
    double.misbehave(f"hang {subcommand}")
    bench.absent("vm1")
    bench.until(lambda: double.under_way(subcommand))
    bench.stop(signal.SIGKILL)
    double.behave()
    bench.start()
    bench.until(lambda: not list(bench.runtime.glob("taps/*")))
    double.assert_clean()


def test_a_held_tapdisk_has_let_its_image_go_and_takes_it_up_again(tapdisk_host: TapdiskHost) -> None:
    bench = tapdisk_host.bench
    bring_up(tapdisk_host, "aio", image := bench.image("a.img"))
    before, written = bench.disk("vm1", "vda"), threading.Event()

    def guest() -> None:
        write(bench.stable("vm1", "vda"), b"x" * 4096)
        written.set()

    def tapster(*words: str) -> None:
        subprocess.run([*AGENT, *words, "vm1", "--config", bench.config], check=True, stdout=subprocess.DEVNULL)

    tapster("quiesce")
    (pid,) = tapdisk_host.tapdisks()
    listed = subprocess.run(["tap-ctl", "list", "-p", str(pid)], check=True, capture_output=True, text=True).stdout
    assert "state=0x2a" in listed
    assert TapFolder(tapdisk_host.tap("vda")).relay.held() is True
    writer = threading.Thread(target=guest)
    writer.start()
    bench.restart(signal.SIGKILL)
    assert bench.until_phase("vm1", "vda", "Degraded")["error"]["reason"] == "Quiesced"
    assert not written.is_set()
    assert image.read_bytes() == bytes(1 << 20)
    tapster("resume")
    writer.join(PATIENCE)
    assert image.read_bytes()[:4096] == b"x" * 4096
    assert bench.until_phase("vm1", "vda", "Up")["diskseq"] == before["diskseq"]
    take_down(tapdisk_host)
