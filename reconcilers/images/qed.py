"""QED (QEMU, docs/interop/qed_spec.rst)."""

from reconcilers.images.facts import Facts
from reconcilers.images.window import Window

_BACKING, _NEED_CHECK, _NO_PROBE = 1, 2, 4
_KNOWN = _BACKING | _NEED_CHECK | _NO_PROBE
_HEADER = 64
_NAME_BYTES_MAX = 1023


def check(image: Window) -> Facts:
    """Judge a header whose magic is right.

    Raises:
        DiskError: ImageDamaged or UnsupportedFeature.
    """
    cluster, table_clusters, header_clusters, features = image.unpack("<IIIQ", 4)
    l1_at, size, name_at, name_bytes = image.unpack("<QQII", 40)
    image.need(_power_of_two(cluster) and 1 << 12 <= cluster <= 1 << 26, f"has clusters of {cluster} bytes")
    image.need(_power_of_two(table_clusters) and table_clusters <= 16, f"has tables of {table_clusters} clusters")
    image.need(1 <= header_clusters <= 16, f"has a header of {header_clusters} clusters")
    if features & ~_KNOWN:
        raise image.unsupported(f"has features that are not known here ({features & ~_KNOWN:#x})")
    table_bytes = table_clusters * cluster
    most = min((table_bytes // 8) ** 2 * cluster, 1 << 63)
    image.need(512 <= size < most and size % 512 == 0, f"has a disk of {size} bytes")
    image.need_table("L1 table", l1_at, table_bytes, behind=header_clusters * cluster, unit=cluster)
    if not features & _BACKING:
        return Facts()
    sound = name_at >= _HEADER and name_bytes <= _NAME_BYTES_MAX and name_at + name_bytes <= header_clusters * cluster
    image.need(sound, f"has the name of a backing file, {name_bytes} bytes at {name_at}, outside of its header")
    return Facts(backing=image.take(name_at, name_bytes).decode("utf-8", "replace"))


def _power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
