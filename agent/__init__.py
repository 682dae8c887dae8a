"""What should be, and when: definitions, bus, durable store, controller, status, command line."""

from functools import cache


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for: importlib.metadata is an eighth of what `--help` takes."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _version()


@cache  # each birth and farewell on the bus says it
def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("tapster")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+checkout"
