"""Servers that die again and again are started less and less often."""

import pytest

from reconcilers.blktap.crashes import MOST, WINDOW_SECONDS, Crashes
from reconcilers.errors import DiskError
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey

KEY, OTHER = DiskKey("vm1", "vda"), DiskKey("vm1", "vdb")


class Clock:
    """Goes forward when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def pause(crashes: Crashes, clock: Clock) -> float:
    """Seconds until another server may be started."""
    begin = clock.now
    while True:
        try:
            crashes.refuse_too_soon(KEY)
        except DiskError:
            clock.now += 0.5
        else:
            return clock.now - begin


def test_pauses_grow_and_then_it_is_given_up_for_the_window() -> None:
    clock = Clock()
    crashes, pauses = Crashes(clock), []
    start = clock.now
    for _ in range(MOST):
        crashes.note(KEY, "")
        pauses.append(pause(crashes, clock))
    assert pauses[:-1] == [0, 1, 2, 4]
    assert clock.now == start + WINDOW_SECONDS


def test_the_last_words_are_told_and_other_disks_are_not_held_up() -> None:
    clock = Clock()
    crashes = Crashes(clock)
    for words in ("first", "Assertion `false' failed"):
        crashes.note(KEY, words)
    with pytest.raises(DiskError, match="Assertion `false' failed") as refused:
        crashes.refuse_too_soon(KEY)
    assert refused.value.reason is Reason.SERVER_CRASHES
    crashes.refuse_too_soon(OTHER)


def test_deaths_of_long_ago_do_not_count() -> None:
    clock = Clock()
    crashes = Crashes(clock)
    for _ in range(MOST * 3):
        crashes.note(KEY, "")
        clock.now += WINDOW_SECONDS
        crashes.refuse_too_soon(KEY)
