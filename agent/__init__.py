"""What should be, and when: definitions, bus, durable store, controller, status, command line."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tapster")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+checkout"
