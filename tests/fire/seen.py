"""What is on the host, read from the kernel and /proc and not from anything that the agent says."""

import os
import re
import stat
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from reconcilers.actual import FileId
from tests.on_host import storage_daemons
from tests.workbench import Bench

_TAP = re.compile(r"/taps/([0-9a-f]{16})/")


@dataclass(frozen=True)
class Device:
    """A disk's loop device. `image` is unknown, and `server` None, where a tap's server is dead."""

    path: str
    diskseq: int | None
    size: int
    read_only: bool
    tap: bool
    server: int | None
    image: FileId | None

    @property
    def dead(self) -> bool:
        """Reads and writes fail."""
        return self.tap and self.server is None


@dataclass(frozen=True)
class Seen:
    """Everything of one bench, by the id of its disk."""

    devices: dict[str, Device]
    servers: dict[str, int]
    links: dict[str, str]
    taps: set[str]
    mounts: int


def look(bench: Bench, images: Collection[FileId]) -> Seen:
    """Look at everything of a bench.

    Raises:
        AssertionError: A disk has two devices or two servers.
    """
    servers, devices = dict[str, int](), dict[str, Device]()
    for pid, words in storage_daemons():
        if str(bench.runtime) in words and (named := _TAP.search(words)):
            assert named[1] not in servers, f"two servers for one disk: {servers[named[1]]} and {pid}"
            servers[named[1]] = pid
    for device in bench.loops():
        tap = device.backing is None or device.backing not in images
        disk = device.tag.disk if device.tag else Path(device.backing_path or "").parent.name
        server = servers.get(disk) if tap else None
        assert disk not in devices, f"two devices for one disk: {devices[disk].path} and {device.path}"
        devices[disk] = Device(
            path=device.path,
            diskseq=device.diskseq,
            size=device.size_bytes,
            read_only=device.read_only,
            tap=tap,
            server=server,
            image=device.backing if not tap else _served(server, images),
        )
    links = {
        str(path.relative_to(bench.runtime / "disks")): str(path.readlink())
        for path in bench.runtime.glob("disks/*/*")
        if path.is_symlink()
    }
    taps = {path.name for path in bench.runtime.glob("taps/*")}
    return Seen(devices, servers, links, taps, len(bench.mounts()))


def _served(server: int | None, images: Collection[FileId]) -> FileId | None:
    """The image that a server has open."""
    if server is None:
        return None
    with suppress(OSError):
        for fd in Path(f"/proc/{server}/fd").iterdir():
            with suppress(OSError):
                facts = os.stat(fd)  # noqa: PTH116 - a descriptor and not a file of that name
                identity = FileId(facts.st_dev, facts.st_ino)
                if stat.S_ISREG(facts.st_mode) and identity in images:
                    return identity
    return None
