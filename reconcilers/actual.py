"""What a disk really is: the observed half of every decision.

These values come from the kernel and the runtime folders, never from memory. Only the observer makes them.
"""

import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.reason import Reason
from reconcilers.spec import Backend, Format, Layer
from reconcilers.tuning import Tuning

SECTOR = 512
"""Bytes in the unit in which the kernel counts, and the least that a disk can have."""


class FileId(NamedTuple):
    """A file's identity across symlinks, hard links and bind mounts: `st_dev` and `st_ino` (stat(2)).

    Of a block device `st_rdev` and 0, since its nodes can be many.
    """

    device: int
    inode: int

    @classmethod
    def of(cls, facts: os.stat_result) -> "FileId":
        """The identity of what stat(2) tells of."""
        return cls(facts.st_rdev, 0) if stat.S_ISBLK(facts.st_mode) else cls(facts.st_dev, facts.st_ino)

    def __str__(self) -> str:
        device = f"{os.major(self.device)}:{os.minor(self.device)}"
        return f"inode {self.inode} on device {device}" if self.inode else f"device {device}"


class SourceKind(StrEnum):
    """What a source path refers to."""

    FILE = "file"
    BLOCK = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the desired source path refers to now.

    Attributes:
        kind: Regular file or block device.
        identity: Which file or block device it is.
        size_bytes: Length of the file or device.
    """

    kind: SourceKind
    identity: FileId
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the source path can't be used."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TapFacts:
    """How a tap serves its disk.

    Attributes:
        server: Which program has the image.
        device: How its export is made a block device.
        export: Where it exports: the mount point of a FUSE file, a unix socket, or the URI of one for a hypervisor.
        process_id: The server's; None if it is gone, or just being started.
        unit: The systemd service that the server runs in; None if there is none.
        flushes: Whether a guest's flush reaches the image's storage.
        takes_limits: Whether its I/O limits can be others, or none, while it serves.
    """

    server: ServerKind
    device: DeviceKind
    export: str
    process_id: int | None
    unit: str | None
    flushes: bool
    takes_limits: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """A disk is or was to be held still for somebody who copies its image.

    Attributes:
        until: When it goes on by itself, for people; None if it is to go on now.
        held: It is: nothing is written to the image.
    """

    until: str | None
    held: bool


class Claim(NamedTuple):
    """As what a disk has claimed its block device, and by which others are let in beside it."""

    read_only: bool
    shareable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A disk that is there.

    Attributes:
        backend: What makes the block device.
        format: How the image is read.
        identity: Which file or device is behind it.
        device_path: The kernel's node, `/dev/loop3`, or the socket that a hypervisor is given in its place; None
            while a tap has neither yet.
        diskseq: The kernel's sequence number of this very attachment (BLKGETDISKSEQ), None if it has none.
        size_bytes: Size of the block device.
        logical_block_size: Bytes a sector.
        read_only: The device refuses writes.
        tuning: How it moves its bytes.
        asked: What the host had been asked for when it made `tuning` of it; as far as that is known.
        slice_offset: First byte of the image that is served.
        slice_size: Length that was asked for, None for all.
        server: What serves it, with its version.
        server_alive: Whether what serves it is there: a tap's server, the storage under a loop device's image, the very
            block device that was claimed. Without it, reads and writes fail.
        linked: Whether the stable path points to `device_path`.
        below: The images below the one that is served, the uppermost first, each with which file it is.
        tap: More about what serves it, of a tap.
        awaits_server: Its server is gone, and its requests wait for another one, which will know all that the first
            has acknowledged.
        server_answers: False only for a server that runs, has requests to do and does not react. What else is said
            here of such a disk is what was seen last, since asking its device would hang.
        damage: What the server found wrong with the image while it served it.
        hold: There while somebody wants it held still, and until it goes on. Its size and its like are then what the
            kernel knows, as its server can't be asked.
        claim: What it has claimed; None if it needs none, as what serves it has locks.
    """

    backend: Backend
    format: Format
    identity: FileId
    device_path: str | None
    diskseq: int | None
    size_bytes: int
    logical_block_size: int
    read_only: bool
    tuning: Tuning
    asked: Tuning
    slice_offset: int
    slice_size: int | None
    server: str
    server_alive: bool
    linked: bool
    tap: TapFacts | None = None
    awaits_server: bool = False
    server_answers: bool = True
    below: tuple[tuple[Layer, FileId], ...] = ()
    damage: str | None = None
    hold: Hold | None = None
    claim: Claim | None = None

    @property
    def serves(self) -> bool:
        """Whether there is a device, and something behind it."""
        return self.server_alive and self.device_path is not None

    @property
    def has_its_device(self) -> bool:
        """Whether what `device_path` names is this disk's.

        A block device that is gone leaves its name to the next one that the kernel finds. What we make ourselves keeps
        its name for as long as it is observed at all.
        """
        return self.device_path is not None and (self.backend is not Backend.BLOCK or self.server_alive)

    @property
    def node(self) -> str | None:
        """The kernel's block device, if there is one."""
        return None if self.tap and self.tap.device is DeviceKind.NBD_SOCKET else self.device_path

    @property
    def chain(self) -> tuple[Layer, ...]:
        """The images below, as a definition has them."""
        return tuple(layer for layer, _ in self.below)

    @property
    def identities(self) -> frozenset[FileId]:
        """Every file that it has open."""
        return frozenset({self.identity, *(identity for _, identity in self.below)})


@dataclass(frozen=True, slots=True)
class Actual:
    """All that a decision about one disk may depend on.

    Attributes:
        source: What the desired source is; None when there is no desired source.
        attached: What is there; None when nothing is.
        stray_link: The device that the stable path names although the disk has none, or not that one any more.
        asked_size: How many bytes somebody on the host asks for; None if nobody does.
    """

    source: Source | Fault | None
    attached: Attached | None
    stray_link: str | None = None
    asked_size: int | None = None
