"""Opening an image that somebody has a lease on, as another thread of the agent has for a moment."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from reconcilers.errors import DiskError
from reconcilers.pools import Pools
from reconcilers.reason import Reason
from reconcilers.source import opened, pinned


@contextmanager
def leased(image: Path, *, lets_go: bool) -> Iterator[None]:
    """The image with a lease on it, whose holder lets go as soon as it is told, or never does."""
    fd = os.open(image, os.O_RDWR)

    def told(number: int, frame: FrameType | None) -> None:
        if lets_go:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            os.close(fd)

    before = signal.signal(signal.SIGUSR1, told)
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGUSR1)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield
    finally:
        if not lets_go:
            os.close(fd)
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("writable", [True, False])
def test_a_lease_that_ends_when_its_holder_is_told_is_waited_for(image: Path, writable: bool) -> None:
    with (
        pinned(str(image), Pools(folders=(image.parent,))) as pin,
        leased(image, lets_go=True),
        opened(pin, writable=writable) as source,
    ):
        assert source.read(4096, at=0) == bytes(4096)


def test_a_lease_that_stays_is_told_of(image: Path) -> None:
    with (
        pinned(str(image), Pools(folders=(image.parent,))) as pin,
        leased(image, lets_go=False),
        pytest.raises(DiskError, match=f"source {image} is leased to a program") as refused,
        opened(pin, writable=True),
    ):
        pass
    assert refused.value.reason is Reason.SOURCE_IN_USE
