"""What a disk should be: the desired half of every decision.

A `DiskSpec` is the only thing that crosses from the upper floor (definitions) to this one. It is frozen and
hashable, so "did anything change?" is `==`.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from reconcilers.tuning import UNTUNED, Tuning

GUEST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9 _.,=@:~()&-]{0,126}[A-Za-z0-9_.=@:~()&-])?")
"""A guest's name is one MQTT topic level and one folder name, so: ASCII, no slash, no MQTT wildcard."""

TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
"""A target (`vda`, `hdc`) is one file name in the guest's folder of stable paths."""


class Backend(StrEnum):
    """What turns a source into a block device."""

    LOOP = "loop"
    BLKTAP = "blktap"
    BLOCK = "block"


class Format(StrEnum):
    """How the bytes of an image are to be read. Declared, never probed.

    `RAW` goes with loop and block; a raw image behind blktap is called `AIO`, as blktap calls it.
    """

    RAW = "raw"
    AIO = "aio"
    QCOW = "qcow"
    QCOW2 = "qcow2"
    VHD = "vhd"
    VHDX = "vhdx"
    VMDK = "vmdk"
    VDI = "vdi"
    QED = "qed"


LAYERED = frozenset({Format.QCOW, Format.QCOW2, Format.QED})
"""Formats of which an image can stand on another one here."""

WRITABLE_BY_MANY = frozenset({Format.RAW, Format.AIO})
"""Formats that bear several writers: the others have metadata, of which each writer would have a state of its own."""


class Device(StrEnum):
    """How the guest sees the disk (libvirt's `device` attribute)."""

    DISK = "disk"
    CDROM = "cdrom"
    FLOPPY = "floppy"
    LUN = "lun"


class StartupPolicy(StrEnum):
    """What a missing image means (libvirt's `startupPolicy`)."""

    MANDATORY = "mandatory"
    REQUISITE = "requisite"
    OPTIONAL = "optional"


class DiskKey(NamedTuple):
    """Names one disk of one guest; the unit of work and of serialisation. A key of many tables, so hashed in C."""

    guest: str
    target: str

    def __str__(self) -> str:
        return f"{self.guest}/{self.target}"


@dataclass(frozen=True, slots=True)
class Layer:
    """An image below another, which has what is not in the one above; it is only ever read.

    Attributes:
        path: Absolute path of the image.
        format: How it is to be read.
    """

    path: str
    format: Format


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    """One disk as its definition asks for it.

    Attributes:
        key: The guest and the target.
        device: How the guest sees it.
        source: Absolute path of the image or block device; None for an empty cdrom or floppy drive.
        backend: What shall serve it; None when there is no source.
        format: How the image is to be read; None when there is no source.
        read_only: No write may reach the source.
        shareable: The definition allows other guests that also say so to use the same source.
        logical_block_size: Bytes per sector that the guest sees; None for the backend's default of 512.
        slice_offset: First byte of the source that belongs to the disk.
        slice_size: Length in bytes of that part; None for all the rest.
        startup_policy: What a missing image means.
        tuning: How its bytes are to be moved.
        chain: The images below the source, the uppermost first, as the definition declares them.
    """

    key: DiskKey
    device: Device = Device.DISK
    source: str | None
    backend: Backend | None
    format: Format | None
    read_only: bool = False
    shareable: bool = False
    logical_block_size: int | None = None
    slice_offset: int = 0
    slice_size: int | None = None
    startup_policy: StartupPolicy = StartupPolicy.MANDATORY
    tuning: Tuning = UNTUNED
    chain: tuple[Layer, ...] = ()
