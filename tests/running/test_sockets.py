"""Disks that are sockets, for hypervisors that speak NBD: data, users, servers that die, and who may connect at all."""

import grp
import os
import signal
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.broker import Broker
from tests.on_host import open_files
from tests.running.test_quiesce import reason, tapster
from tests.running.tuning import ask
from tests.workbench import PATIENCE, Bench, tap_disk
from tests.workbench import bench as running_bench

MIB = 1 << 20
BLOCK = 4096
NOBODY = 65534

TAPS = "[blktap]\nservers = ['tapdisk', 'storage-daemon']\ndevices = ['nbd-socket']\n"
SLOW = "[controller]\nretry_min = 500\nretry_max = 1000\nresync = 3600\n"
"""What such an agent notices, it was told of."""


@pytest.fixture
def bench(host_parts: None, broker: Broker) -> Iterator[Bench]:
    """A host whose taps are sockets."""
    with running_bench(SLOW + TAPS, broker=broker) as host:
        yield host


def bring_up(bench: Bench, image: Path, fmt: str = "aio", more: str = "") -> dict[str, Any]:
    """Push vm1 with one disk; returns its status."""
    bench.push_disks("vm1", tap_disk("vda", image, fmt, more))
    return bench.until_phase("vm1", "vda", "Up")


def take_down(bench: Bench) -> None:
    """And nothing is left."""
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    bench.assert_clean()
    assert not list((bench.runtime / "sockets").iterdir())


def client(bench: Bench, *commands: str, patience: int = 60) -> list[str]:
    """A qemu-io over the stable path, that waits for another server so long."""
    options = f"driver=nbd,server.type=unix,server.path={bench.stable('vm1', 'vda')},export=disk"
    words = ["qemu-io", "--image-opts", f"{options},reconnect-delay={patience}"]
    return [*words, *(word for command in commands for word in ("-c", command))]


def done(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)


@contextmanager
def connected(bench: Bench) -> Iterator[subprocess.Popen[str]]:
    """A client that is there and asks for nothing, until its input ends."""
    with subprocess.Popen(client(bench), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("write -P 1 0 4k\n")
        process.stdin.flush()
        bench.until(lambda: has_client(bench))
        yield process


def has_client(bench: Bench) -> bool:
    """Whether somebody is connected, as the server sees it: one descriptor more of its socket than it listens at."""
    (server,) = bench.servers()
    at_socket = [line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines() if "/sockets/" in line]
    links = open_files(server)
    return len([inode for inode in at_socket if f"socket:[{inode}]" in links]) > 1


@pytest.mark.parametrize(("fmt", "qemu"), [("aio", "raw"), ("qcow2", "qcow2"), ("vhd", "vpc")])
def test_data_goes_both_ways(bench: Bench, fmt: str, qemu: str) -> None:
    before, image, after = (bench.images / name for name in ("before.raw", "image", "after.raw"))
    before.write_bytes(os.urandom(4 * MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", qemu, before, image], check=True)
    uri = bring_up(bench, image, fmt)["effective"]["tap"]["export"]
    size = bench.disk("vm1", "vda")["size_bytes"]
    read = done(["qemu-img", "compare", "-f", "raw", "-F", "raw", uri, str(before)])
    assert read.returncode == 0, read.stdout
    assert done(client(bench, "write -P 7 1M 1M", "flush")).returncode == 0
    take_down(bench)
    subprocess.run(["qemu-img", "convert", "-f", qemu, "-O", "raw", image, after], check=True)
    content = before.read_bytes()
    assert after.read_bytes()[: 4 * MIB] == content[:MIB] + b"\7" * MIB + content[2 * MIB :]
    assert after.stat().st_size == size


def test_the_status_says_what_a_hypervisor_takes(bench: Bench) -> None:
    up = bring_up(bench, bench.image("a.img"), more="<blockio logical_block_size='4096'/>")
    tap, socket = up["effective"]["tap"], bench.stable("vm1", "vda").readlink()
    assert (up["device_path"], up["diskseq"], up["stable_path"]) == (None, None, str(bench.stable("vm1", "vda")))
    assert (up["size_bytes"], up["logical_block_size"], up["unhonoured"]) == (MIB, 4096, [])
    assert (tap["device"], tap["export"]) == ("nbd-socket", f"nbd+unix:///disk?socket={socket}")
    assert stat.S_ISSOCK(bench.stable("vm1", "vda").stat().st_mode)


def test_a_socket_in_use_is_not_yanked_and_goes_when_its_client_does(bench: Bench) -> None:
    bring_up(bench, bench.image("a.img"))
    with connected(bench) as user:
        bench.absent("vm1")
        in_use = bench.until_phase("vm1", "vda", "InUse")
        assert [one["pid"] for one in in_use["in_use"]["processes"]] == [user.pid]
        assert f"(pid {user.pid})" in in_use["error"]["message"]
        words, _ = user.communicate("write -P 2 4k 4k\nread -P 2 4k 4k\n")
        assert "wrote 4096/4096" in words
        assert "failed" not in words
    bench.until_guest("vm1", "Down")
    bench.assert_clean()


def test_a_second_client_waits_for_the_first(bench: Bench) -> None:
    bring_up(bench, bench.image("a.img"))
    reads = client(bench, "read -P 9 0 4k")
    with connected(bench) as first, subprocess.Popen(reads, stdout=subprocess.PIPE, text=True) as second:
        assert first.stdin
        first.stdin.write("write -P 9 0 4k\n")
        first.communicate()
        words, _ = second.communicate(timeout=PATIENCE)
    assert "read 4096/4096" in words
    assert "failed" not in words


def wait_for_more(bench: Bench, image: Path, writer: subprocess.Popen[str]) -> None:
    """Wait until fifty more writes were done."""
    enough = image.stat().st_blocks + 50 * BLOCK // 512
    bench.until(lambda: image.stat().st_blocks >= enough or writer.poll() is not None)
    assert writer.poll() is None


def wait_for_another(bench: Bench, servers: list[int]) -> None:
    """Wait until there is a server that is none of these."""
    bench.until(lambda: set(bench.servers()) - set(servers))


@pytest.mark.parametrize(("fmt", "qemu"), [("aio", "raw"), ("qcow2", "qcow2")])
def test_a_client_that_reconnects_notices_nothing_but_a_pause_when_servers_die(
    bench: Bench, fmt: str, qemu: str
) -> None:
    """Nothing is flushed by it, so what a server has acknowledged must be in the image when it is killed."""
    image = bench.formatted("image", qemu)
    before = bring_up(bench, image, fmt)
    places = [number * 17 % 1024 * 2 * BLOCK for number in range(600)]
    writes = [f"write -q -P {number % 250 + 1} {place} {BLOCK}" for number, place in enumerate(places)]
    reads = [f"read -q -P {number % 250 + 1} {place} {BLOCK}" for number, place in enumerate(places)]
    slow = [word for write in writes for word in (write, "sleep 10")]
    with subprocess.Popen(client(bench, *slow, *reads), stdout=subprocess.PIPE, text=True) as writer:
        for kill_agent in (False, True):
            wait_for_more(bench, image, writer)
            servers = bench.servers()
            if kill_agent:
                bench.stop(signal.SIGKILL)
            os.kill(servers[0], signal.SIGKILL)
            if kill_agent:
                bench.start()
            wait_for_another(bench, servers)
        words, _ = writer.communicate(timeout=PATIENCE)
    assert (writer.returncode, words) == (0, "")
    after = bench.until_phase("vm1", "vda", "Up")
    assert after["effective"]["tap"]["export"] == before["effective"]["tap"]["export"]
    bench.until(lambda: bench.events("tapster.disk.outage"))
    outages = [event["data"] for event in bench.events("tapster.disk.outage")]
    assert {outage["reason"] for outage in outages} == {"ServerLost"}
    take_down(bench)


def test_no_server_is_put_over_another_base_under_its_client(bench: Bench) -> None:
    base, overlay, other = (bench.images / name for name in ("base", "overlay", "other"))
    for image, byte in ((base, b"\1"), (other, b"\2")):
        image.write_bytes(byte * MIB)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(overlay)]
    subprocess.run(create, check=True)
    source = f"<source file='{base}'/><backingStore/>"
    bring_up(bench, overlay, "qcow2", f"<backingStore type='file'><format type='raw'/>{source}</backingStore>")
    with connected(bench) as user:
        kept = base.rename(bench.images / "kept")
        other.rename(base)
        os.kill(bench.servers()[0], signal.SIGKILL)
        bench.until(lambda: reason(bench) == "ImageMissing")
        assert f"{base} is another file than the disk had until now" in bench.disk("vm1", "vda")["error"]["message"]
        assert bench.servers() == []
        kept.rename(base)
        bench.resync()
        words, _ = user.communicate("read -P 1 0 1M\n", timeout=PATIENCE)
    assert "failed" not in words
    take_down(bench)


def test_a_writable_qcow2_is_written_through_and_the_status_says_so(bench: Bench) -> None:
    up = bring_up(bench, bench.formatted("a.qcow2", "qcow2"), "qcow2")
    assert up["unhonoured"] == []
    (server,) = bench.servers()
    assert '"writethrough": true' in Path(f"/proc/{server}/cmdline").read_text()
    driver = "<driver name='tap2' type='qcow2' cache='none'/>"
    bench.push_disks("vm1", f"<disk>{driver}<source file='{bench.images}/a.qcow2'/><target dev='vda'/></disk>")
    bench.until_status("vm1", "vda", phase="Up", direct_io=True, unhonoured=["driver/@cache"])


def test_nobody_writes_what_is_read_only(bench: Bench) -> None:
    image = bench.image("a.img")
    bring_up(bench, image, more="<readonly/>")
    words = client(bench, "write 0 4k")
    assert done(words).returncode != 0
    assert done([words[0], "-r", *words[1:-1], "read -P 0 0 4k"]).returncode == 0
    assert image.read_bytes() == bytes(MIB)


def test_what_has_grown_is_larger_when_its_client_lets_go(bench: Bench) -> None:
    image = bench.image("a.img")
    bring_up(bench, image)
    with connected(bench) as user:
        with image.open("r+b") as file:
            file.truncate(2 * MIB)
        assert bench.until_phase("vm1", "vda", "InUse")["size_bytes"] == MIB
        user.communicate()
    bench.until_status("vm1", "vda", phase="Up", size_bytes=2 * MIB)
    assert done(client(bench, "write 1M 1M")).returncode == 0
    take_down(bench)


def test_a_qcow2_is_made_larger_when_nobody_is_connected(bench: Bench) -> None:
    image = bench.formatted("image", "qcow2")
    bring_up(bench, image, "qcow2")
    with connected(bench) as user:
        refused = tapster(bench, "grow", "vm1", "vda", "16M")
        assert refused.returncode == 1
        assert f"(pid {user.pid})" in refused.stderr
        words, _ = user.communicate("read -P 1 0 4k\nwrite -P 2 4k 4k\n")
        assert "failed" not in words
    assert bench.until_phase("vm1", "vda", "Up")["size_bytes"] == 8 * MIB
    assert tapster(bench, "grow", "vm1", "vda", "16M").returncode == 0
    bench.until_status("vm1", "vda", phase="Up", size_bytes=16 * MIB)
    assert done(client(bench, "read -P 2 4k 4k", "write 15M 1M")).returncode == 0
    take_down(bench)


def test_limits_change_while_it_is_in_use(bench: Bench) -> None:
    def limited(number: int) -> str:
        return f"<iotune><total_iops_sec>{number}</total_iops_sec></iotune>"

    def in_force() -> int:
        return int(ask(bench, "vda", "qom-get", path="/objects/limits", property="limits")["iops-total"])

    image = bench.image("a.img")
    bring_up(bench, image, more=limited(500))
    with connected(bench):
        bench.push_disks("vm1", tap_disk("vda", image, "aio", limited(900)))
        bench.until(lambda: in_force() == 900)
        assert bench.until_phase("vm1", "vda", "Up")["unhonoured"] == []


def test_a_held_socket_is_not_written_and_goes_on(bench: Bench) -> None:
    image = bench.image("a.img")
    bring_up(bench, image)
    with connected(bench) as user:
        assert tapster(bench, "quiesce", "vm1").returncode == 0
        before = image.read_bytes()
        assert user.stdin
        user.stdin.write("write -P 5 0 4k\n")
        user.stdin.flush()
        bench.until(lambda: reason(bench) == "Quiesced")
        assert image.read_bytes() == before
        assert tapster(bench, "resume", "vm1").returncode == 0
        words, _ = user.communicate()
    assert "failed" not in words
    assert image.read_bytes()[:BLOCK] == b"\5" * BLOCK


def test_a_copy_is_not_trusted_once_the_held_server_was_replaced(bench: Bench) -> None:
    image = bench.image("a.img")
    bring_up(bench, image)
    with connected(bench) as user:
        assert tapster(bench, "quiesce", "vm1", "--for", "600").returncode == 0
        assert user.stdin
        user.stdin.write("write -P 5 0 4k\n")
        user.stdin.flush()
        servers = bench.servers()
        os.kill(servers[0], signal.SIGKILL)
        wait_for_another(bench, servers)
        bench.until(lambda: image.read_bytes()[:BLOCK] == b"\5" * BLOCK)
        bench.until_phase("vm1", "vda", "Up")
        late = tapster(bench, "resume", "vm1")
        user.communicate()
    assert late.returncode == 1
    assert "may be torn" in late.stderr
    take_down(bench)


def test_who_is_killed_while_it_takes_a_disk_down_brings_it_back(bench: Bench) -> None:
    """The server has taken its export back then, and the socket leads to nothing."""
    bring_up(bench, bench.image("a.img"))
    bench.stop(signal.SIGKILL)
    next(bench.runtime.glob("taps/*/shown")).unlink()
    ask(bench, "vda", "block-export-del", id="disk", mode="safe")
    bench.statuses.clear()
    bench.start()
    bench.until_phase("vm1", "vda", "Up")
    assert done(client(bench, "write 0 4k")).returncode == 0
    take_down(bench)


def test_who_is_killed_while_it_takes_down_what_is_in_use_leaves_it_in_use(bench: Bench) -> None:
    bring_up(bench, bench.image("a.img"))
    with connected(bench) as user:
        bench.stop(signal.SIGKILL)
        (shown,) = bench.runtime.glob("taps/*/shown")
        shown.rename(shown.with_name("hidden"))
        bench.absent("vm1")
        bench.start()
        in_use = bench.until_phase("vm1", "vda", "InUse")
        assert [one["pid"] for one in in_use["in_use"]["processes"]] == [user.pid]
        assert in_use["size_bytes"] == MIB
        user.communicate()
    bench.until_guest("vm1", "Down")
    bench.assert_clean()


def connects(bench: Bench, user: int, groups: Sequence[int]) -> bool:
    """Whether such a process can reach the socket."""
    program = f"import socket; socket.socket(socket.AF_UNIX).connect({str(bench.stable('vm1', 'vda'))!r})"
    python = ["/usr/bin/python3", "-c", program]
    return subprocess.run(python, user=user, group=user, extra_groups=groups, stderr=-3, check=False).returncode == 0


@pytest.mark.parametrize("group", [None, "disk"])
def test_only_root_and_the_group_in_the_settings_can_connect(
    host_parts: None, broker: Broker, group: str | None
) -> None:
    number = grp.getgrnam("disk").gr_gid
    with running_bench(TAPS + (f"socket_group = '{group}'\n" if group else ""), broker=broker) as bench:
        bench.folder.chmod(0o711)
        bring_up(bench, bench.image("a.img"))
        assert not connects(bench, NOBODY, [])
        assert connects(bench, NOBODY, [number]) is (group is not None)
        bench.until(lambda: connects(bench, 0, []))
        (tap,) = bench.runtime.glob("taps/*")
        assert stat.S_IMODE(tap.stat().st_mode) == 0o700


def test_a_group_that_does_not_exist_is_named(host_parts: None, broker: Broker) -> None:
    with running_bench(TAPS + "socket_group = 'nobody-has-this'\n", broker=broker) as bench:
        bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
        bench.until(lambda: bench.disk("vm1", "vda").get("error"))
        error = bench.disk("vm1", "vda")["error"]
        assert error["reason"] == "BackendUnavailable"
        assert "no group 'nobody-has-this'" in error["message"]
        bench.until(lambda: bench.servers() == [])


def test_the_host_says_that_it_gives_sockets(bench: Bench) -> None:
    def births() -> list[bytes]:
        return [text for topic, text in bench.messages if topic == f"{bench.topics}/agent" and b"online" in text]

    bench.until(births)
    assert b'"devices":["nbd-socket"]' in births()[-1]
