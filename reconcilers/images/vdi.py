"""VDI 1.1 (VirtualBox; QEMU, block/vdi.c)."""

from reconcilers.images.facts import Facts
from reconcilers.images.window import Window

_VERSION = 0x00010001
_DYNAMIC, _STATIC, _UNDO, _DIFFERENCING = 1, 2, 3, 4
_BLOCK = 1 << 20
_NOBODY = bytes(16)


def check(image: Window) -> Facts:
    """Judge a header whose magic is right.

    Raises:
        DiskError: ImageDamaged, UnsupportedFeature or BackingUndeclared.
    """
    version, header_bytes, kind = image.unpack("<III", 68)
    map_at, data_at = image.unpack("<II", 340)
    sector, _, size, block, extra, blocks, allocated = image.unpack("<IIQIIII", 360)
    if version != _VERSION:
        raise image.unsupported(f"is a VDI of version {version >> 16}.{version & 0xFFFF}")
    if kind in {_UNDO, _DIFFERENCING} or image.take(424, 32) != 2 * _NOBODY:
        raise image.names_another("is a differencing VDI with a parent")
    image.need(kind in {_DYNAMIC, _STATIC}, f"is a VDI of an unknown type {kind}")
    image.need(384 <= header_bytes <= 512, f"has a header of {header_bytes} bytes")
    if (sector, block, extra) != (512, _BLOCK, 0):
        raise image.unsupported(f"has sectors of {sector} bytes and blocks of {block} and {extra} more")
    image.need(512 <= size <= blocks * _BLOCK, f"has a disk of {size} bytes in {blocks} blocks")
    image.need(allocated <= blocks, f"has {allocated} of {blocks} blocks allocated")
    image.need_table("block map", map_at, 4 * blocks, behind=512, unit=512)
    image.need(data_at % 512 == 0 and map_at + 4 * blocks <= data_at, f"has its data at {data_at}, where none can be")
    return Facts()
