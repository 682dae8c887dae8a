"""VMDK, of the one kind that is a single file: monolithicSparse ("Virtual Disk Format 5.0", VMware).

A descriptor can name extents and parents anywhere; with a capacity of 0 QEMU goes by the descriptor alone.
"""

import re

from reconcilers.images.facts import Facts
from reconcilers.images.window import Window

_KIND = "monolithicSparse"
_SECTOR = 512
_DESCRIPTOR_BYTES_MAX = 64 << 10
_COMPRESSED, _MARKERS = 1 << 16, 1 << 17
_CID_DIGITS = 8
_NO_PARENT = "ffffffff"
_EXTENT = re.compile(r'RW\s+(?P<sectors>\d{1,19})\s+SPARSE\s+"(?P<name>[^"/\\]+)"')


def check(image: Window) -> Facts:
    """Judge an image whose magic is right.

    Raises:
        DiskError: ImageDamaged, UnsupportedFeature or BackingUndeclared.
    """
    if image.take(0, 4) == b"COWD":
        raise image.unsupported(f"is an ESX 3 COW disk, and only {_KIND} is served")
    version, flags, capacity, grain, text_at, text_sectors, per_table = image.unpack("<IIQQQQI", 4)
    directories = image.unpack("<QQ", 48)
    compression = image.number("<H", 77)
    if flags & (_COMPRESSED | _MARKERS) or compression or version not in {1, 2, 3}:
        raise image.unsupported(f"is a compressed VMDK or one of version {version}, and only {_KIND} is served")
    image.need(0 < capacity < 1 << 54, f"has a disk of {capacity} sectors")
    image.need(grain & (grain - 1) == 0 and 8 <= grain <= 1 << 12, f"has grains of {grain} sectors")
    image.need(1 <= per_table <= 512, f"has grain tables of {per_table} entries")
    directory_bytes = 4 * -(-capacity // (grain * per_table))
    for name, at in zip(("redundant grain directory", "grain directory"), directories, strict=True):
        if at or name == "grain directory":
            image.need_table(name, at * _SECTOR, directory_bytes, behind=_SECTOR, unit=_SECTOR)
    _judge_descriptor(image, _descriptor(image, text_at * _SECTOR, text_sectors * _SECTOR), capacity)
    return Facts()


def _descriptor(image: Window, at: int, length: int) -> str:
    image.need(at >= _SECTOR and 0 < length <= _DESCRIPTOR_BYTES_MAX, f"has a descriptor of {length} bytes at {at}")
    text, _, rest = image.take(at, length).partition(b"\0")
    image.need(_is_leftover(rest.rstrip(b"\0"), text), "has something behind its descriptor's end")
    return text.decode("latin-1")  # the encoding is the descriptor's own affair, and its words are ASCII in all


def _is_leftover(rest: bytes, text: bytes) -> bool:
    """Whether what is behind the text is at most the end of an older one, which was longer by some digits of its CID.

    QEMU gives the image another CID at the first write after each start, without leading zeros, and what follows it
    moves up (block/vmdk.c, vmdk_write_cid): one time in 256 that leaves the last byte or more of the old text there.
    """
    return len(rest) < _CID_DIGITS and all(text.endswith(piece) for piece in rest.split(b"\0"))


def _judge_descriptor(image: Window, text: str, capacity: int) -> None:
    if "parentfilenamehint" in text.lower():
        raise image.names_another("names a parent")
    lines = [line.strip() for line in text.splitlines()]
    settings: dict[str, str] = {}
    extents: list[str] = []
    for line in lines:
        name, equals, value = line.partition("=")
        if not line or line.startswith("#"):
            continue
        if equals and re.fullmatch(r"[A-Za-z][\w.]*\s*", name):
            image.need(name.strip().lower() not in settings, f"says {name.strip()} twice in its descriptor")
            settings[name.strip().lower()] = value.strip().strip('"')
        else:
            extents.append(line)
    if settings.get("createtype") != _KIND:
        kind = settings.get("createtype", "unknown")[:40]
        raise image.unsupported(f"is a VMDK of type {kind!r}, and only {_KIND} is served, which is in one file")
    if settings.get("parentcid", _NO_PARENT).lower() != _NO_PARENT:
        raise image.names_another("has a parent")
    extent = _EXTENT.fullmatch(extents[0]) if len(extents) == 1 else None
    if extent is None:
        raise image.names_another("does not have itself as its only extent")
    image.need(int(extent["sectors"]) == capacity, "has one size in its header and another in its descriptor")
