"""What qemu-img and others make is let through, whatever its variant, and is itself and no other."""

import subprocess
from pathlib import Path

import pytest

from reconcilers.images import Verdict
from reconcilers.reason import Reason
from reconcilers.spec import Format
from tests.images.judging import judged, refusal
from tests.images.makers import MIB, QEMU, convert, create, patch, put, resum_vhdx, vhd_dynamic, vhd_fixed

pytestmark = pytest.mark.usefixtures("host_parts")


@pytest.mark.parametrize("made", QEMU)
def test_every_format_is_itself_and_no_other(tmp_path: Path, made: Format) -> None:
    image = create(tmp_path / "image", made)
    assert judged(image, made) == Verdict()
    for other in QEMU.keys() - {made}:
        assert refusal(image, other).reason is Reason.FORMAT_MISMATCH
    for raw in (Format.RAW, Format.AIO):
        assert f"begins like {made}" in (judged(image, raw).warning or "")


QCOW2_OPTIONS = [
    "compat=0.10",
    "compat=1.1",
    "compat=1.1,lazy_refcounts=on",
    "compat=1.1,compression_type=zstd",
    "compat=1.1,extended_l2=on",
    "compat=1.1,extended_l2=on,cluster_size=16k",
    "compat=1.1,extended_l2=on,cluster_size=2M,compression_type=zstd",
    *(f"compat={compat},cluster_size={512 << bits}" for bits in range(13) for compat in ("0.10", "1.1")),
    *(f"refcount_bits={1 << order}" for order in range(7)),
    *(f"preallocation={how}" for how in ("off", "metadata", "falloc", "full")),
]


@pytest.mark.parametrize("options", QCOW2_OPTIONS)
@pytest.mark.parametrize("size", ["1M", "512", "8M"])
def test_qcow2(tmp_path: Path, options: str, size: str) -> None:
    assert judged(create(tmp_path / "image", Format.QCOW2, options, size), Format.QCOW2) == Verdict()


LARGE = [
    (Format.QCOW2, "", "3T"),
    (Format.QCOW2, "cluster_size=512", "100G"),
    (Format.QCOW2, "cluster_size=2M", "60000T"),
    (Format.QCOW2, "extended_l2=on", "500T"),
    (Format.QCOW, "", "3T"),
    (Format.QED, "", "3T"),
    (Format.QED, "cluster_size=4k,table_size=16", "200G"),
    (Format.VDI, "", "3T"),
    (Format.VHD, "", "2000G"),
    (Format.VHD, "force_size=on", "2040G"),
    (Format.VHDX, "", "3T"),
    (Format.VHDX, "", "60T"),
    (Format.VMDK, "", "3T"),
    (Format.VDI, "static=on", "64M"),
    (Format.VHDX, "subformat=fixed", "64M"),
    (Format.VHDX, "block_size=1M", "64G"),
    (Format.VHDX, "block_size=256M", "64G"),
    (Format.VHDX, "log_size=32M", "64M"),
    (Format.VMDK, "zeroed_grain=on", "64M"),
    (Format.VMDK, "compat6", "64M"),
    (Format.VMDK, "adapter_type=lsilogic,hwversion=13", "64M"),
]


@pytest.mark.parametrize(("fmt", "options", "size"), LARGE)
def test_large_ones_and_variants(tmp_path: Path, fmt: Format, options: str, size: str) -> None:
    assert judged(create(tmp_path / "image", fmt, options, size), fmt) == Verdict()


@pytest.mark.parametrize("fmt", QEMU)
def test_with_data_in_them(tmp_path: Path, fmt: Format) -> None:
    assert judged(convert(tmp_path / "image", fmt), fmt) == Verdict()


@pytest.mark.parametrize("more", [["-c"], ["-c", "-o", "compression_type=zstd"], ["-o", "extended_l2=on", "-S", "0"]])
def test_compressed_and_full(tmp_path: Path, more: list[str]) -> None:
    assert judged(convert(tmp_path / "image", Format.QCOW2, *more), Format.QCOW2) == Verdict()


def test_snapshots_bitmaps_and_sizes_that_were_changed(tmp_path: Path) -> None:
    image = convert(tmp_path / "image", Format.QCOW2)
    for words in (
        ["snapshot", "-c", "first", image],
        ["resize", "-f", "qcow2", image, "40G"],
        ["snapshot", "-c", "second", image],
        ["bitmap", "-f", "qcow2", "--add", image, "bits"],
        ["bitmap", "-f", "qcow2", "--add", "-g", "65536", image, "more-bits"],
    ):
        subprocess.run(["qemu-img", *map(str, words)], check=True)
        assert judged(image, Format.QCOW2) == Verdict()


def test_one_that_was_not_closed_properly(tmp_path: Path) -> None:
    qcow2 = create(tmp_path / "qcow2", Format.QCOW2, "lazy_refcounts=on")
    put(">Q", 72, 1)(qcow2)
    qed = create(tmp_path / "qed", Format.QED)
    put("<Q", 16, 2)(qed)
    assert judged(qcow2, Format.QCOW2) == judged(qed, Format.QED) == Verdict()


def test_one_that_is_marked_as_corrupt_may_be_read(tmp_path: Path) -> None:
    image = create(tmp_path / "image", Format.QCOW2)
    put(">Q", 72, 2)(image)
    assert judged(image, Format.QCOW2, read_only=True) == Verdict()
    assert refusal(image, Format.QCOW2).reason is Reason.IMAGE_DAMAGED


def test_unknown_bits_that_may_be_ignored(tmp_path: Path) -> None:
    image = create(tmp_path / "image", Format.QCOW2)
    put(">QQ", 80, 1 << 40, 1 << 40)(image)
    assert judged(image, Format.QCOW2) == Verdict()


@pytest.mark.parametrize("options", ["subformat=fixed", "subformat=fixed,force_size=on"])
def test_fixed_vhds_are_raw_bytes_of_a_known_number(tmp_path: Path, options: str) -> None:
    image = create(tmp_path / "image", Format.VHD, options, "17M")
    size = image.stat().st_size - 512
    assert judged(image, Format.VHD) == Verdict(raw_size=size)
    assert size >= 17 * MIB


def test_vhds_of_others(tmp_path: Path) -> None:
    for creator in (b"win ", b"vpc ", b"tap\0", b"d2v ", b"vbox"):
        image = vhd_fixed(tmp_path / "fixed", bytes(3 * MIB), creator=creator)
        assert judged(image, Format.VHD) == Verdict(raw_size=3 * MIB)
    assert judged(vhd_dynamic(tmp_path / "dynamic"), Format.VHD) == Verdict()


def test_a_vhdx_with_a_log_to_replay_must_be_writable(tmp_path: Path) -> None:
    image = create(tmp_path / "image", Format.VHDX)
    for header in (64 << 10, 128 << 10):
        patch(image, header + 48, b"log" * 5 + b"!")
    resum_vhdx(image)
    assert judged(image, Format.VHDX) == Verdict()
    assert refusal(image, Format.VHDX, read_only=True).reason is Reason.IMAGE_DAMAGED


@pytest.mark.parametrize("digits", [[6], [4], [1], [6, 4], [6, 2, 5]], ids=str)
def test_a_vmdk_whose_content_id_became_shorter(tmp_path: Path, digits: list[int]) -> None:
    """QEMU leaves the end of the longer descriptor behind that of the shorter one."""
    image = create(tmp_path / "image", Format.VMDK)
    head, line = b"# Disk DescriptorFile\nversion=1\nCID=", b"\nparentCID="
    tail = line + image.read_bytes()[512:].partition(b"\0")[0].partition(line)[2]
    for number in [8, *digits]:
        patch(image, 512, head + b"a" * number + tail + b"\0")
    behind = image.read_bytes()[512 : 21 * 512].partition(b"\0")[2]
    assert behind.strip(b"\0")
    judged(image, Format.VMDK)


def test_an_overlay_if_it_is_declared(tmp_path: Path) -> None:
    for fmt in (Format.QCOW, Format.QCOW2, Format.QED):
        base = create(tmp_path / f"base.{fmt}", fmt)
        overlay = tmp_path / f"overlay.{fmt}"
        words = ["qemu-img", "create", "-q", "-f", QEMU[fmt], "-b", str(base), "-F", QEMU[fmt], str(overlay)]
        subprocess.run(words, check=True)
        assert judged(overlay, fmt, below=f"/elsewhere/{base.name}") == Verdict()
        assert refusal(overlay, fmt).reason is Reason.BACKING_UNDECLARED
        assert refusal(overlay, fmt, below="/elsewhere/other").reason is Reason.BACKING_UNDECLARED
        assert refusal(base, fmt, below=str(base)).reason is Reason.BACKING_MISSING
