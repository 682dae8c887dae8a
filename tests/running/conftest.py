"""A host for all tests of a module whose guests do not meddle with each other's."""

from collections.abc import Iterator

import pytest

from tests.broker import Broker
from tests.workbench import Bench, domain
from tests.workbench import bench as running_bench


@pytest.fixture(scope="module")
def host(host_parts: None, broker: Broker) -> Iterator[Bench]:
    """An agent for the whole module; when all is done, it takes every guest down and leaves nothing behind."""
    with running_bench(broker=broker) as shared:
        yield shared
        for guest in list(shared.statuses):
            shared.push(guest, domain(guest), generation=str(2**62))
            shared.absent(guest, 2**62 + 1)
        shared.until(lambda: {status["phase"] for status in shared.statuses.values()} <= {"Down"})
        shared.assert_clean()
        assert shared.running
        assert not [line for line in shared.log_lines() if "exception" in line]
