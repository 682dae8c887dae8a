"""The mark of ownership that is written into what we make.

A loop device carries it in `lo_file_name` (loop.h: 64 bytes with the closing NUL), so that any later agent knows
the device as its own without having remembered anything:

    tapster:<instance>:<disk id>:<guest>/<target>, cut to fit and then with ~ at its end

The instance keeps agents apart that share one kernel (containers, tests); the id names the disk exactly.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from reconcilers.spec import DiskKey

LO_NAME_BYTES = 63
_PREFIX = "tapster"


def instance_id(fleet: str, host: str, runtime: str) -> str:
    """Eight hex digits for one agent on one kernel: the same after a restart, another for another agent."""
    return hashlib.sha256("\0".join((fleet, host, runtime)).encode()).hexdigest()[:8]


@lru_cache(maxsize=1 << 14)  # a look at a disk asks for it eight times
def disk_id(key: DiskKey) -> str:
    """Sixteen hex digits for one disk; also the name of its tap's folder."""
    return hashlib.sha256(f"{key.guest}\0{key.target}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Tag:
    """A parsed mark. `label` is for people only; `disk` decides."""

    instance: str
    disk: str
    label: str

    @classmethod
    def of(cls, instance: str, key: DiskKey) -> "Tag":
        """The tag that this instance gives to a disk."""
        disk = disk_id(key)
        room = LO_NAME_BYTES - len(f"{_PREFIX}:{instance}:{disk}:")
        label = str(key)
        return cls(instance, disk, label if len(label) <= room else f"{label[: room - 1]}~")

    @classmethod
    def parse(cls, name: bytes) -> "Tag | None":
        """Read `lo_file_name`; None for a device that no tapster made."""
        text = name.partition(b"\0")[0].decode("utf-8", "replace")
        match text.split(":", 3):
            case [prefix, instance, disk, label] if prefix == _PREFIX:
                return cls(instance, disk, label)
        return None

    @property
    def key(self) -> DiskKey | None:
        """The disk's full name, where the label had room for it."""
        guest, _, target = self.label.rpartition("/")
        key = DiskKey(guest, target)
        return key if disk_id(key) == self.disk else None

    def __bytes__(self) -> bytes:
        return f"{_PREFIX}:{self.instance}:{self.disk}:{self.label}".encode()
