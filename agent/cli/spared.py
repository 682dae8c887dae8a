"""What others import, and a command has no use for."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


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


@contextmanager
def put_off(*modules: str) -> Iterator[None]:
    """Have whatever is imported in the block take classes from these modules without loading them.

    Such a class can stand in annotations, and making one of it loads the module and makes the real one. A module that
    is loaded already is left as it is; after the block all of them are imported as ever.
    """
    standing_in = [module for module in modules if module not in sys.modules]
    sys.modules.update((module, _PutOff(module)) for module in standing_in)
    try:
        yield
    finally:
        for module in standing_in:
            del sys.modules[module]


class _PutOff(ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):  # what import looks for in a module, e.g. whether it is a package
            raise AttributeError(name)

        def make(_: type, *args: Any, **kwargs: Any) -> Any:
            return getattr(import_module(self.__name__), name)(*args, **kwargs)

        return type(name, (), {"__new__": make})
