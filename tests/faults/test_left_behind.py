"""What an earlier boot or another process left misleads nobody: pid files whose process is another, dead mounts."""

import os
import signal
import subprocess
from pathlib import Path

from tests.workbench import Bench, tap_disk


def stop_and_kill_the_server(bench: Bench) -> Path:
    """Returns the folder of the tap, whose server has ended without a word."""
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    bench.until_phase("vm1", "vda", "Up")
    bench.stop()
    (server,) = bench.servers()
    os.kill(server, signal.SIGKILL)
    bench.until(lambda: not bench.servers())
    (tap,) = bench.runtime.glob("taps/*")
    return tap


def start_and_write(bench: Bench) -> None:
    bench.statuses.clear()
    bench.start()
    bench.wait_synced()
    bench.until_phase("vm1", "vda", "Up")
    bench.until(lambda: len(bench.servers()) == len(bench.mounts()) == len(bench.loops()) == 1)
    with bench.stable("vm1", "vda").open("r+b", buffering=0) as device:
        device.write(b"x" * 4096)
        os.fsync(device.fileno())
    assert (bench.images / "a.img").read_bytes()[:4096] == b"x" * 4096
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    bench.assert_clean()


def test_a_stale_pid_file_that_names_another_process_harms_nobody(bench: Bench) -> None:
    tap = stop_and_kill_the_server(bench)
    with subprocess.Popen(["sleep", "600"]) as bystander:
        try:
            (tap / "pid").write_text(f"{bystander.pid}\n")
            start_and_write(bench)
            assert bystander.poll() is None
        finally:
            bystander.kill()


def leave_a_dead_mount(bench: Bench) -> Path:
    """As taps of earlier versions did, which had their exports where the host sees them. Returns the tap's folder."""
    tap = stop_and_kill_the_server(bench)
    for device in bench.loops():
        subprocess.run(["losetup", "-d", device.path], check=True)
    bench.until(lambda: not bench.loops())
    export = ["--export", f"fuse,id=x,node-name=n,mountpoint={tap / 'export'}"]
    with subprocess.Popen(["qemu-storage-daemon", "--blockdev", "null-co,node-name=n", *export]) as server:
        bench.until(bench.mounts)
        server.kill()
    assert len(bench.mounts()) == 1
    return tap


def test_a_dead_mount_of_an_earlier_version_is_cleared_away(bench: Bench) -> None:
    leave_a_dead_mount(bench)
    start_and_write(bench)


def test_a_dead_mount_that_nothing_is_known_of_is_cleared_away(bench: Bench) -> None:
    tap = leave_a_dead_mount(bench)
    (tap / "tap.json").unlink()
    bench.stable("vm1", "vda").unlink()
    start_and_write(bench)
