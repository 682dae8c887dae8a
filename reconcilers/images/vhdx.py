"""VHDX ([MS-VHDX]; QEMU, block/vhdx.c).

Where a log waits to be replayed, it is replayed by the server, and may change what was judged here. It changes nothing
outside of the image, and the server follows no parent, so that this is the guest's own affair.
"""

from collections.abc import Sequence
from itertools import pairwise
from uuid import UUID

from reconcilers.images.facts import Facts
from reconcilers.images.window import TABLE_BYTES, Window

_KIB, _MIB, _TIB = 1 << 10, 1 << 20, 1 << 40
_HEADERS = (64 * _KIB, 128 * _KIB)
_REGION_TABLE = 192 * _KIB
_HEADER_BYTES, _TABLE_BYTES = 4 * _KIB, 64 * _KIB
_ENTRIES_MAX = 2047
_HAS_PARENT = 2

_BAT = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
_METADATA = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PARENT_LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")

_Span = tuple[str, int, int]


def check(image: Window) -> Facts:
    """Judge an image whose magic is right.

    Raises:
        DiskError: ImageDamaged, UnsupportedFeature or BackingUndeclared.
    """
    headers = [at for at in _HEADERS if _is_whole(image, at, _HEADER_BYTES, b"head")]
    image.need(bool(headers), "has no header with a right checksum")
    logs = [_log(image, at) for at in headers]
    image.need(_is_whole(image, _REGION_TABLE, _TABLE_BYTES, b"regi"), "has no region table with a right checksum")
    regions = _regions(image)
    for log in logs:
        _need_apart(image, [log, ("BAT", *regions[_BAT]), ("metadata region", *regions[_METADATA])])
    _judge_metadata(image, *regions[_METADATA], bat_bytes=regions[_BAT][1])
    current = max(headers, key=lambda at: image.number("<Q", at + 8))
    replay = image.take(current + 48, 16) != bytes(16)
    return Facts(to_be_written="has a log that must be replayed first" if replay else None)


def _log(image: Window, header_at: int) -> _Span:
    log_version, version, length, at = image.unpack("<HHIQ", header_at + 64)
    if version != 1:
        raise image.unsupported(f"is a VHDX of version {version}")
    image.need(log_version == 0, f"has a log of version {log_version}")
    image.need(length > 0, "has no log")
    _need_region(image, "log", at, length)
    return "log", at, length


def _regions(image: Window) -> dict[UUID, tuple[int, int]]:
    count = image.number("<I", _REGION_TABLE + 8)
    image.need(count <= _ENTRIES_MAX, f"has {count} regions")
    regions: dict[UUID, tuple[int, int]] = {}
    for at in range(_REGION_TABLE + 16, _REGION_TABLE + 16 + 32 * count, 32):
        name = UUID(bytes_le=image.take(at, 16))
        offset, length, required = image.unpack("<QII", at + 16)
        if name in {_BAT, _METADATA}:
            image.need(name not in regions, "has a region twice")
            _need_region(image, "BAT" if name == _BAT else "metadata region", offset, length)
            regions[name] = (offset, length)
        elif required & 1:
            raise image.unsupported(f"has a region {name} that is not known here")
    image.need(regions.keys() == {_BAT, _METADATA}, "lacks its BAT or its metadata")
    return regions


def _judge_metadata(image: Window, start: int, length: int, *, bat_bytes: int) -> None:
    table = image.take(start, 32 * _KIB)
    image.need(table.startswith(b"metadata"), "has no metadata where its region table says")
    count = int.from_bytes(table[10:12], "little")
    image.need(32 + 32 * count <= len(table), f"has {count} metadata items")
    items: dict[UUID, int] = {}
    for at in range(32, 32 + 32 * count, 32):
        name = UUID(bytes_le=table[at : at + 16])
        offset = int.from_bytes(table[at + 16 : at + 20], "little")
        if name == _PARENT_LOCATOR:
            raise image.names_another("is a differencing VHDX with a parent")
        if name in {_FILE_PARAMETERS, _DISK_SIZE, _SECTOR_SIZE}:
            sound = name not in items and 64 * _KIB <= offset <= length - 8
            image.need(sound, "has metadata twice, or outside of its region")
            items[name] = start + offset
    image.need(len(items) == 3, "lacks its parameters, its disk's size or its sectors'")
    block, flags = image.unpack("<II", items[_FILE_PARAMETERS])
    if flags & _HAS_PARENT:
        raise image.names_another("is a differencing VHDX with a parent")
    size, sector = image.number("<Q", items[_DISK_SIZE]), image.number("<I", items[_SECTOR_SIZE])
    image.need(sector in {512, 4096}, f"has sectors of {sector} bytes")
    image.need(block & (block - 1) == 0 and _MIB <= block <= 256 * _MIB, f"has blocks of {block} bytes")
    image.need(512 <= size <= 64 * _TIB and size % sector == 0, f"has a disk of {size} bytes")
    blocks = -(-size // block)
    entries = blocks + (blocks - 1) // ((1 << 23) * sector // block)  # between them, one for each bitmap of sectors
    image.need(8 * entries <= bat_bytes, f"has a disk of {size} bytes and a BAT for less")


def _need_region(image: Window, name: str, at: int, length: int) -> None:
    aligned = at % _MIB == 0 and length % _MIB == 0 and length > 0
    image.need(aligned, f"has its {name} at {at} with {length} bytes, neither being whole mebibytes")
    image.need(length <= TABLE_BYTES, f"has a {name} of {length} bytes, more than any server should hold")
    image.need(at >= _MIB and at + length <= image.size, f"ends before its {name}, {length} bytes at {at}")


def _need_apart(image: Window, spans: Sequence[_Span]) -> None:
    ordered = sorted(spans, key=lambda span: span[1])
    for (one, at, length), (other, after, _) in pairwise(ordered):
        image.need(at + length <= after, f"has its {one} and its {other} in one place")


def _is_whole(image: Window, at: int, length: int, signature: bytes) -> bool:
    block = image.take(at, length)
    said = int.from_bytes(block[4:8], "little")
    return block.startswith(signature) and said == _crc32c(block[:4] + bytes(4) + block[8:])


def _crc32c(data: bytes) -> int:
    """Castagnoli's checksum (RFC 3720, appendix B.4); the standard library has only the other one."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC = tuple(map(_remainder, range(256)))
