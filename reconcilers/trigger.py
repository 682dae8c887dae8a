"""Who noticed that something happened to a disk."""

from enum import StrEnum


class Trigger(StrEnum):
    """The words are those of the events on the bus."""

    KERNEL = "kernel"
    SERVER = "server"
    IMAGE = "image"
    COMMAND = "command"
