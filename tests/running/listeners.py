"""What a bench's agent and its servers listen on, as the kernel has it."""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.on_host import open_files
from tests.workbench import Bench

LISTEN = "0A"
ACCEPTS = 0x10000
"""__SO_ACCEPTCON in the flags of /proc/net/unix."""


@dataclass(frozen=True)
class Listener:
    """A listening socket: a TCP address, or a path."""

    place: str

    def is_private(self, runtime: Path) -> bool:
        """Whether only this machine reaches it and, by a path, root. What is above `runtime` is the test's own."""
        if not self.place.startswith("/"):
            return ipaddress.ip_address(self.place).is_loopback
        path = Path(self.place)
        folders = [folder for folder in (path, *path.parents) if folder.is_relative_to(runtime)]
        return any(_is_roots(folder) for folder in folders)


def _is_roots(path: Path) -> bool:
    """Whether nobody but root, as owner or as group, passes."""
    found = path.stat()
    others = found.st_mode & (0o007 if found.st_gid == 0 else 0o077)
    return found.st_uid == 0 and not others


def listening(host: Bench) -> list[Listener]:
    """The listening sockets of the agent and the servers that it started."""
    processes = [host.pid, *host.servers()]
    inodes = {inode for process in processes for inode in _sockets(process)}
    return [listener for inode, listener in _all() if inode in inodes]


def _sockets(process: int) -> Iterator[str]:
    for target in open_files(process):
        if found := re.fullmatch(r"socket:\[(\d+)\]", target):
            yield found[1]


def _all() -> Iterator[tuple[str, Listener]]:
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTEN:
                yield words[9], Listener(str(_address(words[1].partition(":")[0])))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split(maxsplit=7)
        if int(words[3], 16) & ACCEPTS:
            yield words[6], Listener(words[7] if len(words) > 7 else "/")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The kernel prints an address as words of 32 bits in the machine's own order."""
    words = [bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8)]
    return ipaddress.ip_address(b"".join(words))
