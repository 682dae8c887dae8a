"""The two choices that are made for every tap, by their names in the settings and on the bus."""

from enum import StrEnum


class ServerKind(StrEnum):
    """Which program opens the image."""

    TAPDISK = "tapdisk"
    STORAGE_DAEMON = "storage-daemon"


class DeviceKind(StrEnum):
    """How a block device is made of what the server exports; or none is, and a hypervisor takes the export itself."""

    NBD = "nbd"
    FUSE_LOOP = "fuse-loop"
    NBD_SOCKET = "nbd-socket"
