"""Requests to make a disk larger: `<runtime>/grows/<disk id>`, each with the size that it is to have.

They come from `tapster grow`. Each is answered beside it, in `<disk id>.answer`, and forgotten; one that an agent was
killed over is found by the next.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from reconcilers import record_file
from reconcilers.actual import SECTOR, Attached, SourceKind
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.errors import DiskError
from reconcilers.fallocate import fallocate
from reconcilers.reason import Reason
from reconcilers.requests import Requests
from reconcilers.source import Pin, opened
from reconcilers.spec import DiskKey, DiskSpec, Format

_GROWABLE = frozenset({Format.RAW, Format.AIO, Format.QCOW2, Format.QED})
"""What QEMU resizes (7.2.22 and 10.0.13): of the other formats its drivers say that they can't."""


class GrowRequest(BaseModel):
    """So many bytes a disk is to have."""

    model_config = ConfigDict(frozen=True)

    size_bytes: int


class GrowAnswer(BaseModel):
    """Why it has not; None if its image has."""

    model_config = ConfigDict(frozen=True)

    error: str | None


class GrowRequests(Requests[GrowRequest]):
    """The requests on this host."""

    def __init__(self, runtime: Path) -> None:
        super().__init__(runtime / "grows", GrowRequest)

    def asked(self, key: DiskKey) -> int | None:
        """How many bytes a disk is to have; None if nobody asks."""
        request = self.read(key)
        return request.size_bytes if request else None

    def answer(self, key: DiskKey, error: str | None) -> None:
        """The request was met, or can't be."""
        record_file.write(str(self.answer_path(key)), GrowAnswer(error=error))
        self.forget(key)

    def answered(self, key: DiskKey) -> GrowAnswer | None:
        """What came of the latest request; None while it is open."""
        return record_file.read(str(self.answer_path(key)), GrowAnswer)

    def answer_path(self, key: DiskKey) -> Path:
        """Where a disk's answer is."""
        return self.path(key).with_suffix(".answer")


def refuse_to_grow(spec: DiskSpec, attached: Attached, size_bytes: int) -> None:
    """Refuse what can't be done whatever its server says; what is left, that is asked.

    Raises:
        DiskError: UnsupportedFeature, with the reason.
    """
    step = max(SECTOR, attached.logical_block_size)
    reasons = {
        f"it has {attached.size_bytes} bytes already": size_bytes == attached.size_bytes,
        f"it has {attached.size_bytes} bytes, and a disk is never made smaller": size_bytes < attached.size_bytes,
        f"{size_bytes} bytes are no multiple of its sectors of {step}": size_bytes % step != 0,
        "it is read-only, so nothing is written to its image": spec.read_only,
        "it is a part of its source, whose size the definition has": spec.slice_size is not None,
        "its source is a block device of the host's; make that larger, and take the disk down and up": (
            not attached.identity.inode
        ),
        f"no server makes a {spec.format} image larger; convert it to qcow2 (qemu-img convert)": (
            spec.format not in _GROWABLE
        ),
        "over the kernel's nbd its server would have to be stopped; take the disk down, and use qemu-img resize": (
            attached.tap is not None and attached.tap.device is DeviceKind.NBD and not is_raw(spec)
        ),
        "tapdisk can't make its image larger; take the disk down and use its own tools, or qemu-img resize": (
            attached.tap is not None and attached.tap.server is ServerKind.TAPDISK and not is_raw(spec)
        ),
    }
    if why := next((why for why, holds in reasons.items() if holds), None):
        raise DiskError(Reason.UNSUPPORTED_FEATURE, why)


def is_raw(spec: DiskSpec) -> bool:
    """Whether the image's length is the disk's."""
    return spec.format in {Format.RAW, Format.AIO}


def extend(pin: Pin, spec: DiskSpec, attached: Attached, size_bytes: int) -> None:
    """Make a raw image longer; what is over it follows as it does whoever made it so. Blocks; call it in a thread.

    By way of fallocate(2) of its last sector alone, which moves the end and never back: an image may grow on meanwhile,
    and truncate(2) would cut that off.

    Raises:
        DiskError: ImageMissing if the path leads to another file by now, KernelError with what the file system says.
    """
    if pin.source.kind is not SourceKind.FILE or pin.source.identity != attached.identity:
        raise DiskError(Reason.IMAGE_MISSING, f"{pin.path} is another file than the disk's by now")
    with opened(pin, writable=True) as image:
        try:
            fallocate(image.fd, 0, spec.slice_offset + size_bytes - SECTOR, SECTOR)
        except OSError as error:
            message = f"{pin.path} can't be made longer: {error.strerror}; make room, or do it with truncate -s"
            raise DiskError(Reason.KERNEL_ERROR, message) from error
