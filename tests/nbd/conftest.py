"""A host whose taps have nbd devices. Where the kernel has none, tests/vm runs these tests in a machine of its own."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconcilers.blktap.nbd.devices import why_not
from tests import workbench
from tests.broker import Broker
from tests.workbench import Bench
from tests.workbench import bench as running_bench

SETTINGS = "[blktap]\nservers = ['storage-daemon']\ndevices = ['nbd']\nstart_timeout = 60\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An emulated processor is some twenty times slower."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture
def nbd_bench(host_parts: None, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """An agent that has nothing but nbd."""
    if lacking := why_not():
        pytest.skip(lacking)
    monkeypatch.setattr(workbench, "PATIENCE", 120.0)
    with running_bench(SETTINGS, broker=broker) as host:
        yield host
        for guest in list(host.statuses):
            host.absent(guest, 2**62)
        deadline = time.monotonic() + 120
        while list(Path("/sys/block").glob("nbd*/backend")) and time.monotonic() < deadline:
            time.sleep(0.1)
