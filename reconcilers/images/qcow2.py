"""qcow2, versions 2 and 3 (QEMU, docs/interop/qcow2.txt)."""

from collections.abc import Iterator

from reconcilers.images.facts import Facts
from reconcilers.images.window import Window

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_COMPRESSION_TYPES = (0, 1)  # zlib, zstd
_V2_HEADER, _V3_HEADER = 72, 104
_SNAPSHOTS_MAX, _SNAPSHOT_BYTES = 65536, 40
_BITMAPS_MAX = 65535
_L1_BYTES_MAX = 32 << 20
_REFCOUNT_BYTES_MAX = 8 << 20
_NAME_BYTES_MAX = 1023
_EXTENSIONS_MAX = 64

_END, _BITMAPS, _CRYPTO, _EXTERNAL = 0, 0x23852875, 0x0537BE77, 0x44415441


def check(image: Window) -> Facts:
    """Judge a header whose magic is right.

    Raises:
        DiskError: ImageDamaged, UnsupportedFeature or BackingUndeclared.
    """
    version = image.number(">I", 4)
    cluster_bits, size, crypt = image.unpack(">IQI", 20)
    image.need(9 <= cluster_bits <= 21, f"has clusters of 2^{cluster_bits} bytes")
    if crypt:
        raise image.unsupported("is encrypted")
    features, header_bytes = 0, _V2_HEADER
    if version > 2:
        features, header_bytes = _version_3(image, cluster_bits)
    backing = _backing(image, header_bytes, 1 << cluster_bits)
    name_at = image.number(">Q", 8)
    for kind, at, length in _extensions(image, header_bytes, name_at or 1 << cluster_bits):
        _judge_extension(image, kind, at, length, 1 << cluster_bits)
    _judge_tables(image, size, cluster_bits, features)
    return Facts(backing=backing, broken="is marked as corrupt" if features & _CORRUPT else None)


def _version_3(image: Window, cluster_bits: int) -> tuple[int, int]:
    """The incompatible features and the header's length."""
    features, _, _, refcount_order, header_bytes = image.unpack(">QQQII", 72)
    sound = _V3_HEADER <= header_bytes <= 1 << cluster_bits and header_bytes % 8 == 0
    image.need(sound, f"has a header of {header_bytes} bytes")
    image.need(refcount_order <= 6, f"counts references in 2^{refcount_order} bits")
    if features & _DATA_FILE:
        raise image.names_another("keeps its data in another file")
    if features & ~_KNOWN:
        raise image.unsupported(f"has features that are not known here ({features & ~_KNOWN:#x})")
    compression = image.take(104, 1)[0] if header_bytes > _V3_HEADER else 0
    consistent = bool(compression) == bool(features & _COMPRESSION) and compression in _COMPRESSION_TYPES
    image.need(consistent, f"is compressed by a method {compression} that it does not announce or nobody knows")
    if features & _EXTENDED_L2:
        image.need(cluster_bits >= 14, f"has subclusters in clusters of 2^{cluster_bits} bytes")
    return features, header_bytes


def _backing(image: Window, header_bytes: int, cluster: int) -> str | None:
    at, length = image.unpack(">QI", 8)
    if not at and not length:
        return None
    sound = header_bytes <= at <= cluster and length <= min(_NAME_BYTES_MAX, cluster - at)
    image.need(sound, f"has the name of a backing file, {length} bytes at {at}, outside of its header")
    return image.take(at, length).decode("utf-8", "replace")


def _extensions(image: Window, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Each header extension: its type, where its data is, and how long."""
    for _ in range(_EXTENSIONS_MAX):
        if at + 8 > min(end, image.size):
            return
        kind, length = image.unpack(">II", at)
        if kind == _END:
            return
        at += 8
        image.need(length <= end - at, f"has a header extension {kind:#010x} that is longer than its header")
        yield kind, at, length
        at += -(-length // 8) * 8
    raise image.damaged(f"has more than {_EXTENSIONS_MAX} header extensions")


def _judge_extension(image: Window, kind: int, at: int, length: int, cluster: int) -> None:
    if kind == _EXTERNAL:
        raise image.names_another("names a file for its data")
    if kind == _CRYPTO:
        raise image.unsupported("is encrypted")
    if kind == _BITMAPS:
        image.need(length == 24, f"has a list of bitmaps in {length} bytes")
        count, _, list_bytes, list_at = image.unpack(">IIQQ", at)
        image.need(0 < count <= _BITMAPS_MAX, f"has {count} bitmaps")
        image.need_table("list of bitmaps", list_at, list_bytes, behind=cluster, unit=cluster)


def _judge_tables(image: Window, size: int, cluster_bits: int, features: int) -> None:
    cluster = 1 << cluster_bits
    l1_entries, l1_at, refcount_at, refcount_clusters, snapshots, snapshots_at = image.unpack(">IQQIIQ", 36)
    per_l1 = cluster * (cluster // (16 if features & _EXTENDED_L2 else 8))
    image.need(512 <= size < 1 << 63, f"has a disk of {size} bytes")
    image.need(l1_entries >= -(-size // per_l1), f"has a disk of {size} bytes and addresses for less (L1 table)")
    image.need(l1_entries * 8 <= _L1_BYTES_MAX, f"has an L1 table of {l1_entries} entries")
    image.need_table("L1 table", l1_at, l1_entries * 8, behind=cluster, unit=cluster)
    refcount_bytes = refcount_clusters * cluster
    image.need(0 < refcount_bytes <= _REFCOUNT_BYTES_MAX, f"has a refcount table of {refcount_bytes} bytes")
    image.need_table("refcount table", refcount_at, refcount_bytes, behind=cluster, unit=cluster)
    apart = l1_at + l1_entries * 8 <= refcount_at or refcount_at + refcount_bytes <= l1_at
    image.need(apart, "has its L1 table and its refcount table in one place")
    if snapshots:
        image.need(snapshots <= _SNAPSHOTS_MAX, f"has {snapshots} snapshots")
        least = snapshots * _SNAPSHOT_BYTES
        image.need_table("list of snapshots", snapshots_at, least, behind=cluster, unit=cluster)
