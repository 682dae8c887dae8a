"""A host with a tapdisk: the double always, and the real one where the machine has it."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.tapdisk.host import TapdiskHost, install_double
from tests.workbench import bench as running_bench

SETTINGS = """
[blktap]
servers = ["tapdisk", "storage-daemon"]
start_timeout = 8
formats = ["aio", "vhd", "qcow"]
[controller]
retry_min = 0.05
retry_max = 0.3
step_timeout = 60
"""


@pytest.fixture(params=["double", "real"])
def tapdisk_host(
    request: pytest.FixtureRequest,
    host_parts: None,
    broker: Broker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TapdiskHost]:
    """An agent that finds this tap-ctl on its PATH."""
    real = shutil.which("tap-ctl")
    if request.param == "real" and real is None:
        pytest.skip("this machine has no tap-ctl")
    folder = tmp_path / "control" if request.param == "double" else Path("/run/blktap-control")
    if request.param == "double":
        folder.mkdir()
        install_double(tmp_path / "bin" / "tap-ctl", folder)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with running_bench(SETTINGS, broker=broker) as bench:
        host = TapdiskHost(bench, folder, is_double=request.param == "double")
        yield host
        host.behave()
        for pid in host.tapdisks():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def double(tapdisk_host: TapdiskHost) -> TapdiskHost:
    """Only the double misbehaves on request."""
    if not tapdisk_host.is_double:
        pytest.skip("the real one does not misbehave on request")
    return tapdisk_host
