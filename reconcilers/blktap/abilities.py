"""What this host can do for taps, probed once at start: which servers it has, what they open, how a device is made."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from reconcilers.blktap import storage_daemon
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.blktap.server import TapServer
from reconcilers.blktap.storage_daemon import StorageDaemon
from reconcilers.spec import Format


@dataclass(frozen=True, slots=True)
class TapAbilities:
    """The servers and ways to a device that work here and that the settings allow, the preferred ones first.

    Attributes:
        servers: Each with what it is asked through.
        devices: Never empty unless there is something `missing`.
        formats: What the settings allow of that which the servers open.
        missing: Why there can be no tap, and what to do about it; None if there can.
    """

    servers: Mapping[ServerKind, TapServer]
    devices: tuple[DeviceKind, ...]
    formats: frozenset[Format]
    missing: str | None

    def choose(self, fmt: Format) -> tuple[ServerKind, DeviceKind]:
        """The server and the device of a new tap; the format is one of `formats`."""
        return next(kind for kind, server in self.servers.items() if fmt in server.formats), self.devices[0]

    def every_server(self) -> dict[ServerKind, TapServer]:
        """One of each kind: a tap that is there is asked and stopped whatever the settings say by now."""
        return {ServerKind.STORAGE_DAEMON: StorageDaemon(storage_daemon.PROGRAM), **self.servers}


async def probe_taps(servers: Collection[ServerKind], formats: frozenset[Format]) -> TapAbilities:
    """Find out what can be had.

    Args:
        servers: What the settings allow, the preferred first.
        formats: Image formats that may be served.
    """
    version = await storage_daemon.version()
    found: dict[ServerKind, TapServer] = {}
    if version and ServerKind.STORAGE_DAEMON in servers:
        found[ServerKind.STORAGE_DAEMON] = StorageDaemon(version)
    missing = _missing(servers, found)
    opened = frozenset(fmt for server in found.values() for fmt in server.formats)
    return TapAbilities(found, (DeviceKind.FUSE_LOOP,), frozenset() if missing else opened & formats, missing)


def _missing(servers: Collection[ServerKind], found: Mapping[ServerKind, TapServer]) -> str | None:
    if not servers:
        return "the settings allow no server (blktap.servers)"
    if not found:
        program = storage_daemon.PROGRAM
        return f"{program} is not installed; `apt-get install qemu-utils`, on Debian 12 qemu-system-common"
    if problem := unopenable("/dev/loop-control"):
        return f"{problem}; load it with `modprobe loop`"
    if problem := unopenable("/dev/fuse"):
        return f"{problem}; load it with `modprobe fuse`"
    return None


def unopenable(path: str) -> str | None:
    """Why a control node of the kernel's can't be opened; None if it can."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None
