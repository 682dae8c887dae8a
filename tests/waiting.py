"""Waiting for what another thread or process brings about."""

import time
from collections.abc import Callable

PATIENCE = 60.0


def until(holds: Callable[[], object]) -> None:
    """Return once something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
