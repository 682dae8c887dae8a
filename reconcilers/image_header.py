"""What an image's header says, held against what its definition declares.

Nothing is probed into more than was declared: the header can only confirm the declared format or make us refuse.
Reads at most 4 KiB from the front and one sector from the end. Layouts: qcow2 docs/interop/qcow2.txt, qcow v1
block/qcow.c, qed docs/interop/qed_spec.rst, VHD "Virtual Hard Disk Image Format Specification" 1.0, VHDX [MS-VHDX],
VMDK "Virtual Disk Format 5.0", VDI block/vdi.c.
"""

import struct
from collections.abc import Callable

from reconcilers.actual import SECTOR
from reconcilers.errors import DiskError
from reconcilers.reason import Reason
from reconcilers.source import OpenSource
from reconcilers.spec import Format

_HEAD_BYTES = 4096
_VHD_FIXED, _VHD_DIFFERENCING = 2, 4
_QCOW2_EXTERNAL_DATA = 1 << 2
_VMDK_DESCRIPTOR_LIMIT = 20 * SECTOR


def _is_vhd(head: bytes, tail: bytes) -> bool:
    # A fixed VHD has its footer only at the end; a dynamic one repeats it in sector 0.
    return tail.startswith(b"conectix") or head.startswith(b"conectix")


_MAGIC: dict[Format, Callable[[bytes, bytes], bool]] = {
    Format.QCOW: lambda head, _: head.startswith(b"QFI\xfb\x00\x00\x00\x01"),
    Format.QCOW2: lambda head, _: head[:8] in {b"QFI\xfb\x00\x00\x00\x02", b"QFI\xfb\x00\x00\x00\x03"},
    Format.QED: lambda head, _: head.startswith(b"QED\x00"),
    Format.VDI: lambda head, _: head[64:68] == b"\x7f\x10\xda\xbe",
    Format.VMDK: lambda head, _: head[:4] in {b"KDMV", b"COWD"},
    Format.VHDX: lambda head, _: head.startswith(b"vhdxfile"),
    Format.VHD: _is_vhd,
}


def check_header(image: OpenSource, declared: Format) -> str | None:
    """Refuse an image that is not what its definition says.

    Args:
        image: The image, open for reading.
        declared: The definition's format.

    Returns:
        A warning for people where a raw image looks like another format (it is served as raw all the same, as
        declared: following the header would let a guest choose what the host opens), else None.

    Raises:
        DiskError: FormatMismatch, BackingUndeclared, UnsupportedFeature or ImageDamaged.
    """
    head = image.read(_HEAD_BYTES, 0)
    tail = image.read(SECTOR, max(0, image.source.size_bytes - SECTOR))
    found = next((fmt for fmt, matches in _MAGIC.items() if matches(head, tail)), None)
    if declared in {Format.RAW, Format.AIO}:
        if found is None:
            return None
        return (
            f"image {image.path} begins like {found}, but is declared {declared} and served as that; "
            f"if the guest should see the {found} image's content, declare {found}"
        )
    if found is not declared:
        raise DiskError(
            Reason.FORMAT_MISMATCH,
            f"image {image.path} is declared {declared}, but its header is "
            f"{f'that of {found}' if found else 'not of any known format'}; declare what it is, or replace it",
        )
    _NO_OTHER_FILES.get(declared, _nothing_named)(image, head, tail)
    return None


def _nothing_named(_image: OpenSource, _head: bytes, _tail: bytes) -> None:
    """The format has no way to name another file."""


def _undeclared(image: OpenSource, what: str) -> DiskError:
    return DiskError(
        Reason.BACKING_UNDECLARED,
        f"image {image.path} {what}, which its definition does not declare; flatten it with "
        "qemu-img convert, since an image must not choose which other files the host opens",
    )


def _check_qcow(image: OpenSource, head: bytes, _tail: bytes) -> None:
    if struct.unpack_from(">Q", head, 8)[0]:
        raise _undeclared(image, "names a backing file")


def _check_qcow2(image: OpenSource, head: bytes, tail: bytes) -> None:
    _check_qcow(image, head, tail)
    (version,) = struct.unpack_from(">I", head, 4)
    if version >= 3 and struct.unpack_from(">Q", head, 72)[0] & _QCOW2_EXTERNAL_DATA:  # noqa: PLR2004
        raise _undeclared(image, "keeps its data in another file")


def _check_qed(image: OpenSource, head: bytes, _tail: bytes) -> None:
    if struct.unpack_from("<Q", head, 16)[0] & 1:
        raise _undeclared(image, "names a backing file")


def _check_vhd(image: OpenSource, head: bytes, tail: bytes) -> None:
    footer = tail if tail.startswith(b"conectix") else head
    (kind,) = struct.unpack_from(">I", footer, 60)
    if kind == _VHD_DIFFERENCING:
        raise _undeclared(image, "is a differencing VHD with a parent")
    if kind == _VHD_FIXED and not tail.startswith(b"conectix"):
        raise DiskError(
            Reason.IMAGE_DAMAGED,
            f"image {image.path} says fixed VHD at its front, but has no footer at its end",
        )


def _check_vmdk(image: OpenSource, head: bytes, _tail: bytes) -> None:
    if head.startswith(b"COWD"):
        raise DiskError(
            Reason.UNSUPPORTED_FEATURE,
            f"image {image.path} is an ESX 3 COW disk; convert it to monolithicSparse with qemu-img",
        )
    offset, sectors = struct.unpack_from("<QQ", head, 28)
    descriptor = image.read(min(sectors * SECTOR, _VMDK_DESCRIPTOR_LIMIT), offset * SECTOR)
    lines = descriptor.partition(b"\0")[0].decode("utf-8", "replace").splitlines()
    settings = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    kind = settings.get("createType", "").strip().strip('"')
    if kind not in {"monolithicSparse", "streamOptimized"}:
        raise DiskError(
            Reason.UNSUPPORTED_FEATURE,
            f"image {image.path} is a VMDK of type {kind or 'unknown'}, whose data is in other files; "
            "convert it to monolithicSparse with qemu-img",
        )
    if "parentFileNameHint" in settings:
        raise _undeclared(image, "names a parent")


_NO_OTHER_FILES: dict[Format, Callable[[OpenSource, bytes, bytes], None]] = {
    Format.QCOW: _check_qcow,
    Format.QCOW2: _check_qcow2,
    Format.QED: _check_qed,
    Format.VHD: _check_vhd,
    Format.VMDK: _check_vmdk,
}
