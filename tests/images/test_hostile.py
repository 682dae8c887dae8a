"""Headers that a guest, or whoever brings an image, would write: each is refused with the right word."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from reconcilers.reason import Reason
from reconcilers.spec import Format
from tests.images.judging import judged, refusal
from tests.images.makers import (
    FAR,
    HUGE,
    MIB,
    Change,
    create,
    patch,
    put,
    resum_vhdx,
    vhdx_metadata,
    vhdx_region,
)

pytestmark = pytest.mark.usefixtures("host_parts")

DAMAGED, UNSUPPORTED, ELSEWHERE = Reason.IMAGE_DAMAGED, Reason.UNSUPPORTED_FEATURE, Reason.BACKING_UNDECLARED

NAMES = [
    "/etc/shadow",
    "nbd://127.0.0.1:10809/x",
    "json:" + json.dumps({"driver": "raw", "file": {"driver": "host_device", "filename": "/dev/sda"}}),
    "json:" + json.dumps({"driver": "ssh", "host": "127.0.0.1", "path": "/etc/shadow"}),
    "fat:rw:/etc",
    "http://169.254.169.254/latest/meta-data",
    "/dev/fd/3",
    "",
]


def named_backing(name: str) -> Change:
    def change(path: Path) -> None:
        data = name.encode()
        patch(path, 512, data)
        put(">QI", 8, 512, len(data))(path)

    return change


def extension(kind: int, data: bytes = b"", *, length: int | None = None, at: int = 112) -> Change:
    head = struct.pack(">II", kind, len(data) if length is None else length)
    return lambda path: patch(path, at, head + data + bytes(-len(data) % 8) + bytes(8))


def many_extensions(path: Path) -> None:
    patch(path, 112, struct.pack(">II", 0x12345678, 0) * 4000)


BITMAPS = 0x23852875

QCOW2: dict[str, tuple[Change, Reason]] = {
    **{f"backing {name[:20]}": (named_backing(name), ELSEWHERE) for name in NAMES},
    "backing name too long": (put(">QI", 8, 512, 1024), DAMAGED),
    "backing name far away": (put(">QI", 8, FAR, 10), DAMAGED),
    "backing name in the header": (put(">QI", 8, 8, 10), DAMAGED),
    "backing name over the cluster's end": (put(">QI", 8, 65530, 10), DAMAGED),
    "backing length alone": (put(">QI", 8, 0, 10), DAMAGED),
    "data file by its bit": (put(">Q", 72, 4), ELSEWHERE),
    "data file by its extension": (extension(0x44415441, b"/etc/shadow"), ELSEWHERE),
    "data file by both": (lambda path: (put(">Q", 72, 4)(path), extension(0x44415441, b"/dev/sda")(path)), ELSEWHERE),
    "data file after another extension": (
        lambda path: (
            extension(0x6803F857, bytes(48) + struct.pack(">II", 0x44415441, 8) + b"/etc/pw\0")(path)
            and patch(path, 112, struct.pack(">II", 0x6803F857, 48))
        ),
        ELSEWHERE,
    ),
    "encrypted by AES": (put(">I", 32, 1), UNSUPPORTED),
    "encrypted by LUKS": (put(">I", 32, 2), UNSUPPORTED),
    "encryption header": (extension(0x0537BE77, bytes(16)), UNSUPPORTED),
    **{f"unknown feature {bit}": (put(">Q", 72, 1 << bit), UNSUPPORTED) for bit in (5, 6, 31, 32, 63)},
    "compression without its bit": (put(">B", 104, 1), DAMAGED),
    "compression bit alone": (put(">Q", 72, 8), DAMAGED),
    "unknown compression": (lambda path: (put(">Q", 72, 8)(path), put(">B", 104, 7)(path)), DAMAGED),
    "version 0": (put(">I", 4, 0), Reason.FORMAT_MISMATCH),
    "version 4": (put(">I", 4, 4), Reason.FORMAT_MISMATCH),
    **{f"clusters of 2^{bits}": (put(">I", 20, bits), DAMAGED) for bits in (0, 8, 22, 31, 63, 64, 0xFFFFFFFF)},
    "subclusters in small clusters": (lambda path: (put(">I", 20, 13)(path), put(">Q", 72, 16)(path)), DAMAGED),
    **{f"disk of {size}": (put(">Q", 24, size), DAMAGED) for size in (0, 511, 1 << 63, HUGE, 1 << 60)},
    **{f"L1 of {count}": (put(">I", 36, count), DAMAGED) for count in (0, 0x7FFFFFFF, 0xFFFFFFFF, (32 << 20) // 8 + 1)},
    **{f"L1 at {at}": (put(">Q", 40, at), DAMAGED) for at in (0, 1, 512, FAR, HUGE, HUGE - 65535, 1 << 63)},
    **{f"refcounts at {at}": (put(">Q", 48, at), DAMAGED) for at in (0, 1, FAR, HUGE, HUGE - 65535)},
    **{f"refcounts of {count}": (put(">I", 56, count), DAMAGED) for count in (0, 129, 0x10000, 0xFFFFFFFF)},
    "L1 in the refcounts": (put(">Q", 40, 65536), DAMAGED),
    "refcounts of 2^7 bits": (put(">I", 96, 7), DAMAGED),
    **{f"header of {length}": (put(">I", 100, length), DAMAGED) for length in (0, 72, 103, 105, 1 << 17, 0xFFFFFFFF)},
    "too many snapshots": (put(">IQ", 60, 65537, 65536), DAMAGED),
    "snapshots far away": (put(">IQ", 60, 1, FAR), DAMAGED),
    "snapshots in the header": (put(">IQ", 60, 1, 0), DAMAGED),
    "snapshots beside a cluster": (put(">IQ", 60, 1, 65537), DAMAGED),
    "extension too long": (extension(0x12345678, length=1 << 20), DAMAGED),
    "extension of 4 GiB": (extension(0x12345678, length=0xFFFFFFFF), DAMAGED),
    "many extensions": (many_extensions, DAMAGED),
    "bitmaps far away": (extension(BITMAPS, struct.pack(">IIQQ", 1, 0, 64, FAR)), DAMAGED),
    "bitmaps without number": (extension(BITMAPS, struct.pack(">IIQQ", 65536, 0, 64, 65536)), DAMAGED),
    "bitmaps' list too long": (extension(BITMAPS, struct.pack(">IIQQ", 1, 0, HUGE, 65536)), DAMAGED),
    "bitmaps short": (extension(BITMAPS, bytes(8)), DAMAGED),
}

QCOW: dict[str, tuple[Change, Reason]] = {
    **{f"backing {name[:20]}": (named_backing(name), ELSEWHERE) for name in NAMES},
    "backing name too long": (put(">QI", 8, 48, 1024), DAMAGED),
    "backing name far away": (put(">QI", 8, FAR, 10), DAMAGED),
    "backing length alone": (put(">QI", 8, 0, 10), DAMAGED),
    "encrypted": (put(">I", 36, 1), UNSUPPORTED),
    **{f"clusters of 2^{bits}": (put(">B", 32, bits), DAMAGED) for bits in (0, 8, 17, 255)},
    **{f"L2 of 2^{bits}": (put(">B", 33, bits), DAMAGED) for bits in (0, 5, 14, 255)},
    **{f"disk of {size}": (put(">Q", 24, size), DAMAGED) for size in (0, 1, 1 << 63, HUGE, 1 << 60)},
    **{f"L1 at {at}": (put(">Q", 40, at), DAMAGED) for at in (0, 47, FAR, HUGE)},
}


def qed_backing(name: str) -> Change:
    def change(path: Path) -> None:
        put("<Q", 16, 1)(path)
        put("<II", 56, 64, len(name.encode()))(path)
        patch(path, 64, name.encode())

    return change


QED: dict[str, tuple[Change, Reason]] = {
    **{f"backing {name[:20]}": (qed_backing(name), ELSEWHERE) for name in NAMES},
    "backing without probing": (lambda path: (qed_backing("/etc/shadow")(path), put("<Q", 16, 5)(path)), ELSEWHERE),
    "backing name far away": (lambda path: (put("<Q", 16, 1)(path), put("<II", 56, 0xFFFFFFFF, 9)(path)), DAMAGED),
    "backing name too long": (lambda path: (put("<Q", 16, 1)(path), put("<II", 56, 64, 1024)(path)), DAMAGED),
    **{f"unknown feature {bit}": (put("<Q", 16, 1 << bit), UNSUPPORTED) for bit in (3, 31, 32, 63)},
    **{f"clusters of {size}": (put("<I", 4, size), DAMAGED) for size in (0, 1, 2048, 65537, 1 << 27, 0xFFFFFFFF)},
    **{f"tables of {count}": (put("<I", 8, count), DAMAGED) for count in (0, 3, 32, 0xFFFFFFFF)},
    **{f"header of {count}": (put("<I", 12, count), DAMAGED) for count in (0, 17, 0xFFFFFFFF)},
    **{f"L1 at {at}": (put("<Q", 40, at), DAMAGED) for at in (0, 1, FAR, HUGE)},
    **{f"disk of {size}": (put("<Q", 48, size), DAMAGED) for size in (0, 513, 1 << 63, HUGE)},
}

VDI: dict[str, tuple[Change, Reason]] = {
    "undo": (put("<I", 76, 3), ELSEWHERE),
    "differencing": (put("<I", 76, 4), ELSEWHERE),
    "type 0": (put("<I", 76, 0), DAMAGED),
    "type 9": (put("<I", 76, 9), DAMAGED),
    "a link": (put(">Q", 424, 1), ELSEWHERE),
    "a parent": (put(">Q", 448, 1), ELSEWHERE),
    "version 2": (put("<I", 68, 0x20000), UNSUPPORTED),
    "header of 0": (put("<I", 72, 0), DAMAGED),
    "header of 4 GiB": (put("<I", 72, 0xFFFFFFFF), DAMAGED),
    **{f"map at {at}": (put("<I", 340, at), DAMAGED) for at in (0, 1, 513, 0xFFFFFE00)},
    **{f"data at {at}": (put("<I", 344, at), DAMAGED) for at in (0, 1, 512)},
    "sectors of 4096": (put("<I", 360, 4096), UNSUPPORTED),
    **{f"disk of {size}": (put("<Q", 368, size), DAMAGED) for size in (0, 9 * MIB, 1 << 63, HUGE)},
    **{f"blocks of {size}": (put("<I", 376, size), UNSUPPORTED) for size in (0, 512, 1 << 21, 0xFFFFFFFF)},
    "blocks with something extra": (put("<I", 380, 512), UNSUPPORTED),
    **{f"{count} blocks": (put("<I", 384, count), DAMAGED) for count in (0, 1, 0xFFFFFFFF)},
    "more allocated than there are": (put("<I", 388, 9), DAMAGED),
}


def vhdx(*changes: Change) -> Change:
    """Changes, with the checksums put right: whoever writes the image can do that too."""

    def change(path: Path) -> None:
        for each in changes:
            each(path)
        resum_vhdx(path)

    return change


def both_headers(layout: str, at: int, *numbers: int) -> Change:
    def change(path: Path) -> None:
        for header in (64 << 10, 128 << 10):
            put(layout, header + at, *numbers)(path)

    return vhdx(change)


def region(name: str, layout: str, at: int, *numbers: int) -> Change:
    return vhdx(lambda path: put(layout, vhdx_region(path, name) + at, *numbers)(path))


def metadata_item(item: str, layout: str, at: int, *numbers: int) -> Change:
    """Change an entry of the table of metadata."""

    def change(path: Path) -> None:
        start = vhdx_metadata(path)
        entry = start + path.read_bytes()[start : start + 4096].index(bytes.fromhex(item))
        put(layout, entry + at, *numbers)(path)

    return change


def metadata_value(item: str, layout: str, *numbers: int) -> Change:
    def change(path: Path) -> None:
        start, data = vhdx_metadata(path), path.read_bytes()
        entry = start + data[start : start + 4096].index(bytes.fromhex(item))
        put(layout, start + struct.unpack("<I", data[entry + 16 : entry + 20])[0], *numbers)(path)

    return change


PARAMETERS, DISK, SECTOR = (
    "3767a1ca36fa434db3b633f0aa44e76b",
    "2442a52f1bcd7648b2115dbed83bf4b8",
    "1dbf41816fa90947ba47f233a8faab5f",
)
PAGE_83 = "ab12cabee6b22345" + "93efc309e000c746"


def parent_locator(path: Path) -> None:
    """One item, of which the server needs nothing, becomes a parent locator."""
    start = vhdx_metadata(path)
    entry = start + path.read_bytes()[start : start + 4096].index(bytes.fromhex(PAGE_83))
    patch(path, entry, bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c"))


VHDX: dict[str, tuple[Change, Reason]] = {
    "parent by its flag": (metadata_value(PARAMETERS, "<II", 8 << 20, 2), ELSEWHERE),
    "parent by its locator": (parent_locator, ELSEWHERE),
    "header's checksum": (
        lambda path: (patch(path, (64 << 10) + 200, b"x"), patch(path, (128 << 10) + 200, b"x")),
        DAMAGED,
    ),
    "region table's checksum": (lambda path: patch(path, (192 << 10) + 4000, b"x"), DAMAGED),
    "version 2": (both_headers("<H", 66, 2), UNSUPPORTED),
    "log version 1": (both_headers("<H", 64, 1), DAMAGED),
    **{f"log of {length}": (both_headers("<I", 68, length), DAMAGED) for length in (0, 4096, 0xFFF00000)},
    **{f"log at {at}": (both_headers("<Q", 72, at), DAMAGED) for at in (0, 4096, 1 << 40, FAR, HUGE, HUGE - MIB + 1)},
    "too many regions": (vhdx(put("<I", (192 << 10) + 8, 2048)), DAMAGED),
    "4 billion regions": (vhdx(put("<I", (192 << 10) + 8, 0xFFFFFFFF)), DAMAGED),
    "no regions": (vhdx(put("<I", (192 << 10) + 8, 0)), DAMAGED),
    "a required region that nobody knows": (region("bat", "<QQQII", 0, 1, 2, MIB, MIB, 1), UNSUPPORTED),
    "no BAT": (region("bat", "<QQQII", 0, 1, 2, MIB, MIB, 0), DAMAGED),
    **{
        f"{name} at {at}": (region(name, "<Q", 16, at), DAMAGED)
        for name in ("bat", "metadata")
        for at in (0, 5, FAR, HUGE)
    },
    **{
        f"{name} of {n}": (region(name, "<I", 24, n), DAMAGED)
        for name in ("bat", "metadata")
        for n in (0, 5, 0xFFF00000)
    },
    "BAT over the metadata": (
        vhdx(lambda path: patch(path, vhdx_region(path, "bat") + 16, struct.pack("<Q", vhdx_metadata(path)))),
        DAMAGED,
    ),
    "too much metadata": (lambda path: put("<H", vhdx_metadata(path) + 10, 0xFFFF)(path), DAMAGED),
    "no metadata": (lambda path: put("<H", vhdx_metadata(path) + 10, 0)(path), DAMAGED),
    "no metadata's mark": (lambda path: patch(path, vhdx_metadata(path), b"x"), DAMAGED),
    "item outside of its region": (metadata_item(DISK, "<I", 16, 0xFFFFFFF0), DAMAGED),
    "item in the table": (metadata_item(DISK, "<I", 16, 0), DAMAGED),
    **{f"blocks of {n}": (metadata_value(PARAMETERS, "<I", n), DAMAGED) for n in (0, 512, 3 << 20, 1 << 29)},
    **{f"disk of {n}": (metadata_value(DISK, "<Q", n), DAMAGED) for n in (0, 513, 1 << 47, 1 << 63, HUGE, 60 << 40)},
    **{f"sectors of {n}": (metadata_value(SECTOR, "<I", n), DAMAGED) for n in (0, 1, 520, 0xFFFFFFFF)},
}


def descriptor(change: Callable[[str], str]) -> Change:
    def changed(path: Path) -> None:
        old = path.read_bytes()[512 : 512 + 20 * 512]
        text = change(old.partition(b"\0")[0].decode()).encode()
        assert text.rstrip(b"\0") != old.rstrip(b"\0")
        patch(path, 512, text.ljust(20 * 512, b"\0")[: 20 * 512])

    return changed


def extent(line: str) -> Change:
    return descriptor(lambda text: "\n".join(line if each.startswith("RW ") else each for each in text.splitlines()))


VMDK: dict[str, tuple[Change, Reason]] = {
    "capacity 0": (put("<Q", 12, 0), DAMAGED),
    "capacity 2^63": (put("<Q", 12, 1 << 63), DAMAGED),
    "another capacity": (put("<Q", 12, 4096), DAMAGED),
    "parent by its hint": (descriptor(lambda text: text + '\nparentFileNameHint="/etc/shadow"\n'), ELSEWHERE),
    "parent by its hint, in other letters": (descriptor(lambda text: text + '\nPARENTfileNAMEhint = "x"'), ELSEWHERE),
    "parent by its id": (descriptor(lambda text: text.replace("parentCID=ffffffff", "parentCID=00000001")), ELSEWHERE),
    "flat extent": (extent('RW 16384 FLAT "/dev/sda" 0'), ELSEWHERE),
    "extent elsewhere": (extent('RW 16384 SPARSE "/etc/shadow"'), ELSEWHERE),
    "extent above": (extent('RW 16384 SPARSE "../../etc/shadow"'), ELSEWHERE),
    "extent by Windows' names": (extent('RW 16384 SPARSE "..\\x"'), ELSEWHERE),
    "device extent": (extent('RW 16384 VMFSRDM "sda"'), ELSEWHERE),
    "zero extent": (extent("RW 16384 ZERO"), ELSEWHERE),
    "no extent": (extent(""), ELSEWHERE),
    "two extents": (extent('RW 16384 SPARSE "a.vmdk"\nRW 16384 FLAT "/etc/shadow" 0'), ELSEWHERE),
    "another size": (extent('RW 99999 SPARSE "a.vmdk"'), DAMAGED),
    "two kinds": (descriptor(lambda text: text + '\ncreateType="monolithicFlat"\n'), DAMAGED),
    "flat": (descriptor(lambda text: text.replace("monolithicSparse", "monolithicFlat")), UNSUPPORTED),
    "custom": (descriptor(lambda text: text.replace("monolithicSparse", "custom")), UNSUPPORTED),
    "no kind": (descriptor(lambda text: text.replace("createType", "other")), UNSUPPORTED),
    "behind its end": (lambda path: patch(path, 512 + 19 * 512, b'parentFileNameHint="/etc/shadow"'), DAMAGED),
    "a little behind its end": (lambda path: patch(path, 512 + 19 * 512, b"\n"), DAMAGED),
    "no descriptor": (put("<QQ", 28, 0, 0), DAMAGED),
    "descriptor far away": (put("<QQ", 28, FAR, 20), DAMAGED),
    "descriptor of 2^63": (put("<QQ", 28, 1, 1 << 63), DAMAGED),
    **{f"grains of {n}": (put("<Q", 20, n), DAMAGED) for n in (0, 1, 3, 1 << 13, HUGE)},
    **{f"tables of {n}": (put("<I", 44, n), DAMAGED) for n in (0, 513, 0xFFFFFFFF)},
    **{f"directory at {at}": (put("<Q", 56, at), DAMAGED) for at in (0, 1 << 40, FAR, HUGE)},
    "compressed": (put("<I", 8, 3 | 1 << 16), UNSUPPORTED),
    "a stream": (put("<I", 8, 3 | 1 << 17), UNSUPPORTED),
    "deflated": (put("<H", 77, 1), UNSUPPORTED),
    "version 9": (put("<I", 4, 9), UNSUPPORTED),
    "of ESX 3": (lambda path: patch(path, 0, b"COWD"), UNSUPPORTED),
}

CASES = {
    Format.QCOW2: QCOW2,
    Format.QCOW: QCOW,
    Format.QED: QED,
    Format.VDI: VDI,
    Format.VHDX: VHDX,
    Format.VMDK: VMDK,
}


@pytest.mark.parametrize(("fmt", "case"), [(fmt, case) for fmt, cases in CASES.items() for case in cases], ids=str)
def test_hostile_header(tmp_path: Path, fmt: Format, case: str) -> None:
    image = create(tmp_path / "image", fmt)
    change, reason = CASES[fmt][case]
    change(image)
    error = refusal(image, fmt)
    assert error.reason is reason, error.message


@pytest.mark.parametrize("fmt", CASES)
def test_headers_that_are_cut_off(tmp_path: Path, fmt: Format) -> None:
    whole = create(tmp_path / "whole", fmt).read_bytes()
    for length in (512, 513, 1024, 4096):
        if length < len(whole) - 512:
            image = tmp_path / "image"
            image.write_bytes(whole[:length])
            assert refusal(image, fmt).reason in {DAMAGED, Reason.FORMAT_MISMATCH}, length


@pytest.mark.parametrize("fmt", [*CASES, Format.VHD])
def test_of_the_huge_and_sparse_little_is_read(tmp_path: Path, fmt: Format) -> None:
    image = create(tmp_path / "image", fmt)
    with image.open("r+b") as file:
        file.truncate(1 << 42)
    before = bytes_read()
    if fmt is Format.VHD:
        refusal(image, fmt)
    else:
        judged(image, fmt)
    assert bytes_read() - before < 2 * MIB


def bytes_read() -> int:
    """What this process has read from files and all else so far (proc_pid_io(5), rchar)."""
    return int(Path("/proc/self/io").read_text().split()[1])
