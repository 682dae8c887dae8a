"""A host whose taps have nbd devices. Where the kernel has none, tests/system/test_real_kernel.py takes another one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reconcilers.blktap.nbd.devices import why_not
from tests import workbench
from tests.broker import Broker
from tests.workbench import Bench
from tests.workbench import bench as running_bench

SETTINGS = "[blktap]\nservers = ['storage-daemon']\ndevices = ['nbd']\nstart_timeout = 60\n"
SETTINGS += "[images]\ndevices = ['/dev/nbd*']\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An emulated processor is some twenty times slower."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(scope="module")
def nbd_bench(host_parts: None, broker: Broker) -> Iterator[Bench]:
    """An agent that has nothing but nbd; one for all tests, as its start takes half a minute there."""
    if lacking := why_not():
        pytest.skip(lacking)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workbench, "PATIENCE", 240.0)
        with running_bench(SETTINGS, broker=broker) as host:
            yield host
