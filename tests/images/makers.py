"""Images as qemu-img makes them and as other programs do, and ways to change a few of their bytes."""

import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from reconcilers.images.vhdx import _crc32c
from reconcilers.spec import Format

Change = Callable[[Path], object]
"""What is done to an image."""

MIB = 1 << 20
FAR = 1 << 62
HUGE = (1 << 64) - 1

QEMU = {
    Format.QCOW: "qcow",
    Format.QCOW2: "qcow2",
    Format.QED: "qed",
    Format.VDI: "vdi",
    Format.VHD: "vpc",
    Format.VHDX: "vhdx",
    Format.VMDK: "vmdk",
}
"""qemu-img's name of each format."""


def create(path: Path, fmt: Format, options: str = "", size: str = "8M") -> Path:
    """An empty image."""
    path.write_bytes(_empty(fmt, options, size))
    return path


@cache
def _empty(fmt: Format, options: str, size: str) -> bytes:
    more = ["-o", options] if options else []
    with tempfile.NamedTemporaryFile() as file:
        command = ["qemu-img", "create", "-q", "-f", QEMU[fmt], *more, file.name, size]
        subprocess.run(command, check=True, capture_output=True)
        return file.read()


def convert(path: Path, fmt: Format, *more: str, size: int = 4 * MIB) -> Path:
    """An image with data in it: every fourth 64 KiB begin with their number."""
    raw = path.with_suffix(".source")
    with raw.open("wb") as file:
        for number in range(0, size, 4 << 16):
            file.seek(number)
            file.write(struct.pack(">Q", number + 1))
        file.truncate(size)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", QEMU[fmt], *more, raw, path], check=True)
    raw.unlink()
    return path


def patch(path: Path, at: int, data: bytes) -> Path:
    """Put bytes at a place; a negative one counts from the end."""
    with path.open("r+b") as file:
        file.seek(at, 2 if at < 0 else 0)
        file.write(data)
    return path


def put(layout: str, at: int, *numbers: int) -> Callable[[Path], object]:
    """A change: numbers at a place."""
    return lambda path: patch(path, at, struct.pack(layout, *numbers))


def vhd_footer(*, size: int, kind: int = 2, data_at: int = (1 << 64) - 1, creator: bytes = b"win ") -> bytes:
    """A footer as Hyper-V writes it."""
    cylinders = min(65535, size // 512 // (16 * 63))
    head = struct.pack(
        ">8sIIQI4sI4sQQHBBI",
        b"conectix",
        2,
        0x10000,
        data_at,
        0,
        creator,
        0xA0000,
        b"Wi2k",
        size,
        size,
        cylinders,
        16,
        63,
        kind,
    )
    return vhd_sum(head + bytes(4) + b"unique-unique-16" + bytes(428), at=64)


def vhd_sum(block: bytes, *, at: int = 64) -> bytes:
    """The block with its checksum in place."""
    cleared = block[:at] + bytes(4) + block[at + 4 :]
    return cleared[:at] + struct.pack(">I", ~sum(cleared) & 0xFFFFFFFF) + cleared[at + 4 :]


def vhd_dynamic(
    path: Path, *, size: int = 8 * MIB, blocks: int | None = None, parent: bytes = b"", kind: int = 3
) -> Path:
    """An empty dynamic VHD in XenServer's manner: blocks of 2 MiB, and room in the table to grow."""
    blocks = blocks or 1024
    footer = vhd_footer(size=size, kind=kind, data_at=512, creator=b"tap\0")
    header = struct.pack(">8sQQIII", b"cxsparse", (1 << 64) - 1, 1536, 0x10000, blocks, 2 * MIB)
    header = vhd_sum((header + bytes(28) + parent).ljust(1024, b"\0"), at=36)
    path.write_bytes(footer + header + b"\xff" * (4 * blocks) + footer)
    return path


def vhd_fixed(path: Path, content: bytes, *, creator: bytes = b"win ", size: int | None = None) -> Path:
    """A fixed VHD around its content."""
    path.write_bytes(content + vhd_footer(size=len(content) if size is None else size, creator=creator))
    return path


def resum_vhd(path: Path) -> Path:
    """Make the checksums of a VHD right again, footer, copy and dynamic header."""
    for at in (-512, 0):
        _resum(path, at, 512, lambda block: vhd_sum(block) if block.startswith(b"conectix") else block)
    return _resum(path, 512, 1024, lambda block: vhd_sum(block, at=36) if block.startswith(b"cxsparse") else block)


def resum_vhdx(path: Path) -> Path:
    """Make the checksums of a VHDX right again, headers and region tables."""

    def summed(block: bytes) -> bytes:
        return block[:4] + struct.pack("<I", _crc32c(block[:4] + bytes(4) + block[8:])) + block[8:]

    for at, length in ((64 << 10, 4096), (128 << 10, 4096), (192 << 10, 1 << 16), (256 << 10, 1 << 16)):
        _resum(path, at, length, summed)
    return path


def _resum(path: Path, at: int, length: int, summed: Callable[[bytes], bytes]) -> Path:
    with path.open("rb") as file:
        file.seek(at, 2 if at < 0 else 0)
        block = file.read(length)
    return patch(path, at, summed(block))


def vhdx_region(path: Path, name: str) -> int:
    """Where a region's entry in the first region table is."""
    marks = {"bat": "6677c22d23f600429d64115e9bfd4a08", "metadata": "06a27c8b90479a4bb8fe575f050f886e"}
    return (192 << 10) + path.read_bytes()[192 << 10 : 256 << 10].index(bytes.fromhex(marks[name]))


def vhdx_metadata(path: Path) -> int:
    """Where the metadata region is."""
    entry = vhdx_region(path, "metadata") + 16
    return int(struct.unpack("<Q", path.read_bytes()[entry : entry + 8])[0])
