"""What every test may use, and the check after all of them that nothing is left on the host."""

import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from tests.broker import Broker, running_broker
from tests.on_host import belongings
from tests.workbench import Bench
from tests.workbench import bench as running_bench

NEEDS = {
    "/dev/loop-control": "the loop driver: modprobe loop",
    "/dev/fuse": "FUSE: modprobe fuse",
}
PROGRAMS = ("qemu-storage-daemon", "qemu-img", "mosquitto")


# A shell without job control has what it runs in the background ignore the first two, nohup(1) the third, and programs
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _lacking() -> list[str]:
    lacking = [why for path, why in NEEDS.items() if not os.access(path, os.R_OK | os.W_OK)]
    return lacking + [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the tests under fire go on."""
    parser.addoption("--restarts", default=50, help="how often tests/fire kills the agent under its writers")
    parser.addoption("--fire-seed", default=None, help="the random life that tests/fire lets a host live through")


@pytest.fixture(scope="session")
def host_parts() -> None:
    """The kernel's drivers and the servers: their lack fails the run in CI, and is a reason to skip elsewhere."""
    if lacking := _lacking():
        message = f"this machine lacks {', '.join(lacking)}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """One broker for all tests that do not harm it."""
    with running_broker() as shared:
        yield shared


@pytest.fixture
def bench(host_parts: None, broker: Broker) -> Iterator[Bench]:
    """A host with its agent running, on the shared broker."""
    with running_bench(broker=broker) as host:
        yield host


@pytest.fixture
def slow_bench(host_parts: None, broker: Broker) -> Iterator[Bench]:
    """A host whose agent hardly looks of its own accord: what it notices, it was told of."""
    with running_bench("[controller]\nretry_min = 500\nretry_max = 1000\nresync = 3600", broker=broker) as host:
        yield host


@pytest.fixture(scope="session", autouse=True)
def _nothing_left() -> Iterator[None]:
    """Every loop device, FUSE mount and storage daemon that a test made is gone at the end."""
    before = belongings()
    yield
    left = belongings() - before
    assert not left, f"tests left these on the host: {sorted(left)}"
