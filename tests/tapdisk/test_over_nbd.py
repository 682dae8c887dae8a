"""The double of tapdisk behind the kernel's nbd, with no other server between; where the kernel has that.

On an emulated processor it takes six minutes, so it is none of those that are run there every time.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconcilers.blktap.nbd.devices import why_not
from tests import workbench
from tests.broker import Broker
from tests.nbd.test_nbd import BLOCK, BLOCKS, Writer, bring_up
from tests.tapdisk.host import TapdiskHost, install_double
from tests.workbench import bench as running_bench

SETTINGS = "[blktap]\nservers = ['tapdisk']\ndevices = ['nbd']\nformats = ['aio']\nstart_timeout = 60\n"


@pytest.fixture
def nbd_host(
    host_parts: None, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TapdiskHost]:
    """An agent that has nothing but tapdisk and nbd."""
    if lacking := why_not():
        pytest.skip(lacking)
    folder = tmp_path / "control"
    folder.mkdir()
    install_double(tmp_path / "bin" / "tap-ctl", folder)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(workbench, "PATIENCE", 240.0)
    with running_bench(SETTINGS, broker=broker) as bench:
        yield TapdiskHost(bench, folder, is_double=True)


@pytest.mark.timeout(900)
def test_a_guest_notices_nothing_but_a_pause_when_its_tapdisk_dies(nbd_host: TapdiskHost) -> None:
    bench, image = nbd_host.bench, nbd_host.bench.image("a.img", BLOCK * BLOCKS)
    pattern = os.urandom(BLOCK)
    with image.open("r+b") as file:
        file.write(pattern)
    bring_up(bench, "aio", image)
    before = bench.disk("vm1", "vda")
    assert before["effective"]["server"] == "tapdisk"
    assert bench.stable("vm1", "vda").read_bytes()[:BLOCK] == pattern
    writer = Writer(bench.stable("vm1", "vda"))
    writer.start()
    writer.wait_for_more(bench)
    (first,) = nbd_host.tapdisks()
    os.kill(first, signal.SIGKILL)
    bench.until(lambda: set(nbd_host.tapdisks()) - {first})
    writer.wait_for_more(bench)
    bench.restart(signal.SIGKILL)
    writer.wait_for_more(bench)
    writer.stop()
    again = bench.until_phase("vm1", "vda", "Up")
    assert (again["device_path"], again["diskseq"]) == (before["device_path"], before["diskseq"])
    subprocess.run(["sync", bench.stable("vm1", "vda")], check=True)
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    nbd_host.assert_clean()
    assert not list(Path("/sys/block").glob("nbd*/pid"))
