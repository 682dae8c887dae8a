"""The benchmark of a fleet, on one small enough for every run of the tests: nothing is lost, and everyone converges."""

import shutil

import pytest
from rich.console import Console

from tests.bench.fleet import PUSHES, rounds
from tests.bench.fleet_run import fleet

HOSTS = 12


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="apt-get install mosquitto-clients")
def test_a_small_fleet_comes_through_every_round_and_loses_nothing() -> None:
    with fleet(HOSTS, 2, Console(quiet=True)) as running:
        cold, *pushes, failing, mended, restarted = rounds(running)
    assert {one.lost for one in (cold, *pushes, failing, mended, restarted)} == {0}
    assert len(pushes) == PUSHES
    for one in (cold, *pushes, failing, restarted):
        assert one.messages >= 6 * HOSTS, one  # four disks, the guest and its status
    assert mended.messages > 0
