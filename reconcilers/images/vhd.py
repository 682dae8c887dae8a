"""VHD ("Virtual Hard Disk Image Format Specification" 1.0, Microsoft; QEMU, block/vpc.c).

The footer in the last sector decides, and nothing else can: of a fixed VHD all before it is the guest's, who may write
there what looks like the header of a dynamic one. QEMU would believe that, so a fixed VHD is served as the raw bytes
that it is.
"""

from reconcilers.images.facts import Facts
from reconcilers.images.window import Window

COOKIE = b"conectix"
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_SECTOR, _SPARSE_HEADER = 512, 1024
_MAX_BYTES = 2040 << 30


def check(image: Window) -> Facts:
    """Judge an image whose last sector begins with the cookie.

    Raises:
        DiskError: ImageDamaged or BackingUndeclared.
    """
    footer_at = image.size - _SECTOR
    footer = image.take(footer_at, _SECTOR)
    _need_checksum(image, "footer", footer, at=64)
    kind, size = image.number(">I", footer_at + 60), image.number(">Q", footer_at + 48)
    if kind == _DIFFERENCING:
        raise image.names_another("is a differencing VHD with a parent")
    image.need(kind in {_FIXED, _DYNAMIC}, f"is a VHD of an unknown type {kind}")
    image.need(size >= _SECTOR and size % _SECTOR == 0, f"has a disk of {size} bytes")
    if kind == _FIXED:
        image.need(size <= footer_at, f"has a disk of {size} bytes, and {footer_at} before its footer")
        return Facts(raw_size=size)
    image.need(size <= _MAX_BYTES, f"has a disk of {size} bytes")
    _judge_dynamic(image, footer, size)
    return Facts()


def _judge_dynamic(image: Window, footer: bytes, size: int) -> None:
    front = image.take(0, _SECTOR)
    image.need(front.startswith(COOKIE), "has no copy of its footer at its front, which a dynamic VHD must have")
    _need_checksum(image, "copy of the footer", front, at=64)
    same = all(front[part] == footer[part] for part in (slice(16, 24), slice(48, 64), slice(68, 84)))
    image.need(same, "says one thing at its front and another at its end")
    header_at = image.number(">Q", 16)
    image.need(header_at >= _SECTOR and header_at % _SECTOR == 0, f"has its dynamic header at {header_at}")
    header = image.take(header_at, _SPARSE_HEADER)
    image.need(header.startswith(b"cxsparse"), "has no dynamic header where its footer says")
    _need_checksum(image, "dynamic header", header, at=36)
    table_at, _, blocks, block = image.unpack(">QIII", header_at + 16)
    sound = block & (block - 1) == 0 and 1 << 12 <= block <= 1 << 28
    image.need(sound, f"has blocks of {block} bytes")
    image.need(blocks * block >= size, f"has a disk of {size} bytes and {blocks} blocks of {block} for it")
    image.need_table("block allocation table", table_at, 4 * blocks, behind=_SECTOR, unit=_SECTOR)
    image.need(table_at + 4 * blocks <= image.size - _SECTOR, "has its block allocation table where its footer is")
    apart = table_at + 4 * blocks <= header_at or header_at + _SPARSE_HEADER <= table_at
    image.need(apart, "has its block allocation table where its dynamic header is")


def _need_checksum(image: Window, name: str, block: bytes, *, at: int) -> None:
    """The one's complement of the sum of all bytes, the sum's own field taken as zero."""
    said = int.from_bytes(block[at : at + 4], "big")
    real = ~(sum(block) - sum(block[at : at + 4])) & 0xFFFFFFFF
    image.need(said == real, f"has a {name} whose checksum is wrong")
