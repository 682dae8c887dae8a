"""A server that runs and does not answer: its disk says so, other disks go on, and it goes on by itself."""

import os
import signal
import threading

from tests.workbench import Bench, loop_disk, tap_disk


def test_a_stopped_server_is_told_of_and_goes_on_when_it_is_let(slow_bench: Bench) -> None:
    bench = slow_bench
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    up = bench.until_phase("vm1", "vda", "Up")
    server = bench.servers()[0]
    written = threading.Event()

    def write() -> None:
        with bench.stable("vm1", "vda").open("r+b", buffering=0) as device:
            device.write(b"x" * 4096)
            os.fsync(device.fileno())
        written.set()

    os.kill(server, signal.SIGSTOP)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        hung = bench.until_phase("vm1", "vda", "Degraded")
        assert hung["error"]["reason"] == "ServerHung"
        assert not written.is_set()
        bench.push_disks("vm2", loop_disk("vda", bench.image("b.img")), tap_disk("vdb", bench.image("c.img")))
        bench.until_guest("vm2", "Up")
    finally:
        os.kill(server, signal.SIGCONT)
        writer.join()
    bench.resync()
    again = bench.until_phase("vm1", "vda", "Up")
    assert (again["diskseq"], bench.servers()[0]) == (up["diskseq"], server)
    assert (bench.images / "a.img").read_bytes()[:4096] == b"x" * 4096
