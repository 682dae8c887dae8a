"""qcow, version 1 (QEMU, block/qcow.c)."""

from reconcilers.images.facts import Facts
from reconcilers.images.window import Window

_HEADER = 48
_NAME_BYTES_MAX = 1023
_L1_BYTES_MAX = 32 << 20


def check(image: Window) -> Facts:
    """Judge a header whose magic is right.

    Raises:
        DiskError: ImageDamaged or UnsupportedFeature.
    """
    name_at, name_bytes, _, size, cluster_bits, l2_bits, _, crypt, l1_at = image.unpack(">QIIQBBHIQ", 8)
    image.need(9 <= cluster_bits <= 16, f"has clusters of 2^{cluster_bits} bytes")
    image.need(6 <= l2_bits <= 13, f"has L2 tables of 2^{l2_bits} entries")
    if crypt:
        raise image.unsupported("is encrypted")
    image.need(512 <= size < 1 << 63, f"has a disk of {size} bytes")
    l1_bytes = 8 * -(-size >> cluster_bits + l2_bits)
    image.need(l1_bytes <= _L1_BYTES_MAX, f"has an L1 table of {l1_bytes} bytes")
    image.need_table("L1 table", l1_at, l1_bytes, behind=_HEADER, unit=1)
    if not name_at and not name_bytes:
        return Facts()
    sound = _HEADER <= name_at < image.size and name_bytes <= _NAME_BYTES_MAX
    image.need(sound, f"has the name of a backing file, {name_bytes} bytes at {name_at}, outside of its header")
    return Facts(backing=image.take(name_at, name_bytes).decode("utf-8", "replace"))
