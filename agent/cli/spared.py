"""Libraries that others use if they are there, and that a command has no use for."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def spared(library: str) -> Iterator[None]:
    """Have a library count as not installed for whatever is imported in the block, unless it is loaded already.

    `None` in its place is what Python's import takes for that (reference, "The module cache").
    """
    if library in sys.modules:
        yield
        return
    modules: dict[str, object] = sys.modules  # type: ignore[assignment]
    modules[library] = None
    try:
        yield
    finally:
        del modules[library]
