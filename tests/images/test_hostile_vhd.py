"""VHDs that a guest, or whoever brings an image, would write: the footer decides."""

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
    resum_vhd,
    vhd_dynamic,
    vhd_fixed,
    vhd_footer,
)

pytestmark = pytest.mark.usefixtures("host_parts")

DAMAGED, ELSEWHERE = Reason.IMAGE_DAMAGED, Reason.BACKING_UNDECLARED


def test_a_planted_header_changes_nothing_of_a_fixed_vhd(tmp_path: Path) -> None:
    planted = {
        "dynamic": vhd_dynamic(tmp_path / "planted").read_bytes(),
        "differencing": vhd_dynamic(
            tmp_path / "planted", kind=4, parent="/etc/shadow".encode("utf-16-be")
        ).read_bytes(),
        "larger": vhd_footer(size=1 << 40),
        "qcow2": create(tmp_path / "planted", Format.QCOW2, "backing_file=/etc/shadow,backing_fmt=raw").read_bytes(),
    }
    for content in planted.values():
        image = vhd_fixed(tmp_path / "image", content.ljust(4 * MIB, b"\0")[: 4 * MIB])
        assert judged(image, Format.VHD).raw_size == 4 * MIB


def dynamic(*changes: Change, kind: int = 3) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        vhd_dynamic(path, kind=kind)
        for change in changes:
            change(path)
        return resum_vhd(path)

    return make


def fixed(size: int) -> Callable[[Path], Path]:
    return lambda path: vhd_fixed(path, bytes(MIB), size=size)


def footers(layout: str, at: int, *numbers: int) -> Change:
    return lambda path: (put(layout, at, *numbers)(path), put(layout, at - 512, *numbers)(path))


VHD: dict[str, tuple[Callable[[Path], Path], Reason]] = {
    "differencing": (dynamic(kind=4), ELSEWHERE),
    **{f"type {kind}": (dynamic(kind=kind), DAMAGED) for kind in (0, 1, 5, 0xFFFFFFFF)},
    **{f"fixed of {size}": (fixed(size), DAMAGED) for size in (0, 511, 1000, MIB + 512, 1 << 40, 1 << 63, HUGE)},
    "fixed with a wrong checksum": (lambda path: patch(vhd_fixed(path, bytes(MIB)), -400, b"x"), DAMAGED),
    "no footer": (lambda path: patch(vhd_dynamic(path), -512, bytes(512)), DAMAGED),
    "no front": (lambda path: patch(vhd_dynamic(path), 0, bytes(512)), DAMAGED),
    "fixed at its end and dynamic in front": (
        lambda path: patch(vhd_dynamic(path), -512, vhd_footer(size=1 << 30)),
        DAMAGED,
    ),
    "another size in front": (
        lambda path: resum_vhd(patch(vhd_dynamic(path), 48, struct.pack(">Q", 4096))),
        DAMAGED,
    ),
    "dynamic header far away": (dynamic(footers(">Q", 16, FAR)), DAMAGED),
    "dynamic header in the footer": (dynamic(footers(">Q", 16, 0)), DAMAGED),
    "dynamic header nowhere": (dynamic(footers(">Q", 16, 1024)), DAMAGED),
    "dynamic header's checksum": (lambda path: patch(vhd_dynamic(path), 600, b"x"), DAMAGED),
    **{f"table at {at}": (dynamic(put(">Q", 528, at)), DAMAGED) for at in (0, 1, 512, 1024, FAR, HUGE)},
    **{f"{count} blocks": (dynamic(put(">I", 540, count)), DAMAGED) for count in (0, 1, 0x01000001, 0xFFFFFFFF)},
    **{
        f"blocks of {size}": (dynamic(put(">I", 544, size)), DAMAGED) for size in (0, 512, 3 << 20, 1 << 29, 0xFFFFFFFF)
    },
    **{f"disk of {size}": (dynamic(footers(">Q", 48, size)), DAMAGED) for size in (0, 511, 1 << 41, 1 << 63, HUGE)},
}


@pytest.mark.parametrize("case", VHD)
def test_hostile_vhd(tmp_path: Path, case: str) -> None:
    make, reason = VHD[case]
    error = refusal(make(tmp_path / "image"), Format.VHD)
    assert error.reason is reason, error.message
