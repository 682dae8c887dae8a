"""Headers of images that qemu-img made, and of ones that lie, against what definitions declare."""

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconcilers.errors import DiskError
from reconcilers.image_header import check_header
from reconcilers.pools import Pools
from reconcilers.reason import Reason
from reconcilers.source import inspected, pinned
from reconcilers.spec import Format

QEMU = {
    Format.QCOW: "qcow",
    Format.QCOW2: "qcow2",
    Format.QED: "qed",
    Format.VDI: "vdi",
    Format.VHD: "vpc",
    Format.VHDX: "vhdx",
    Format.VMDK: "vmdk",
}


def create(path: Path, fmt: str, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", fmt, *options, path, "8M"], check=True)
    return path


def check(path: Path, declared: Format) -> str | None:
    with pinned(str(path), Pools(folders=(path.parent,))) as pin:
        return inspected(pin, lambda image: check_header(image, declared))


def reason(path: Path, declared: Format) -> Reason:
    with pytest.raises(DiskError) as refused:
        check(path, declared)
    assert str(path) in refused.value.message
    return refused.value.reason


@pytest.mark.parametrize("made", QEMU)
def test_every_format_is_itself_and_no_other(host_parts: None, tmp_path: Path, made: Format) -> None:
    image = create(tmp_path / "image", QEMU[made])
    assert check(image, made) is None
    for other in QEMU.keys() - {made}:
        assert reason(image, other) is Reason.FORMAT_MISMATCH
    for raw in (Format.RAW, Format.AIO):
        warning = check(image, raw)
        assert warning
        assert f"begins like {made}" in warning


def test_a_fixed_vhd_is_known_by_its_end_alone(host_parts: None, tmp_path: Path) -> None:
    image = create(tmp_path / "image", "vpc", "-o", "subformat=fixed,force_size=on")
    assert check(image, Format.VHD) is None
    with image.open("r+b") as file:
        file.truncate(image.stat().st_size - 512)
    assert reason(image, Format.VHD) is Reason.FORMAT_MISMATCH


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_both_versions_of_qcow2(host_parts: None, tmp_path: Path, version: str) -> None:
    assert check(create(tmp_path / "image", "qcow2", "-o", f"compat={version}"), Format.QCOW2) is None


@pytest.mark.parametrize(
    ("subformat", "expected"),
    [
        ("monolithicSparse", None),
        ("streamOptimized", None),
        ("monolithicFlat", Reason.IMAGE_TOO_SMALL),  # a text of a few lines that names the data's file
        ("twoGbMaxExtentSparse", Reason.IMAGE_TOO_SMALL),
    ],
)
def test_kinds_of_vmdk(host_parts: None, tmp_path: Path, subformat: str, expected: Reason | None) -> None:
    image = create(tmp_path / "image.vmdk", "vmdk", "-o", f"subformat={subformat}")
    if expected is None:
        assert check(image, Format.VMDK) is None
    else:
        assert reason(image, Format.VMDK) is expected


@pytest.mark.parametrize("made", [Format.QCOW, Format.QCOW2, Format.QED, Format.VMDK])
def test_a_backing_file_is_refused(host_parts: None, tmp_path: Path, made: Format) -> None:
    base = create(tmp_path / "base", QEMU[made])
    image = create(tmp_path / "image", QEMU[made], "-b", str(base), "-F", QEMU[made])
    assert reason(image, made) is Reason.BACKING_UNDECLARED


def test_a_vhd_with_a_parent_is_refused(host_parts: None, tmp_path: Path) -> None:
    image = create(tmp_path / "image", "vpc")
    for place in (0, image.stat().st_size - 512):
        with image.open("r+b") as file:
            file.seek(place + 60)
            file.write(struct.pack(">I", 4))
    assert reason(image, Format.VHD) is Reason.BACKING_UNDECLARED


HEADS = [b"QFI\xfb\x00\x00\x00\x01", b"QFI\xfb\x00\x00\x00\x03", b"QED\x00", b"KDMV", b"COWD", b"vhdxfile", b"conectix"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([*HEADS, b""]), st.binary(max_size=600), st.sampled_from(Format))
def test_no_content_does_worse_than_refuse(tmp_path: Path, head: bytes, rest: bytes, declared: Format) -> None:
    image = tmp_path / "image"
    image.write_bytes((head + rest).ljust(512, b"\0"))
    error: DiskError | None = None
    try:
        check(image, declared)
    except DiskError as refused:
        error = refused
    assert error is None or not error.reason.transient
    assert error is None or error.message.startswith(f"image {image}")
