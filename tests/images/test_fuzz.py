"""Real images with some bytes changed: they are refused with a word or let through, and in no time."""

import importlib.util
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reconcilers.actual import FileId, Source, SourceKind
from reconcilers.errors import DiskError
from reconcilers.images import judge
from reconcilers.reason import Reason
from reconcilers.source import OpenSource
from reconcilers.spec import Format
from tests.images.makers import QEMU, create, resum_vhd, resum_vhdx, vhd_dynamic, vhd_fixed

FINAL = {
    Reason.FORMAT_MISMATCH,
    Reason.BACKING_UNDECLARED,
    Reason.BACKING_MISSING,
    Reason.UNSUPPORTED_FEATURE,
    Reason.IMAGE_DAMAGED,
}
SECONDS = 8
WHY_NOT = "atheris has no package for this Python or machine"
SUMS = {Format.VHD: resum_vhd, Format.VHDX: resum_vhdx}

numbers = st.sampled_from([0, 1, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, 1 << 63, (1 << 64) - 1]) | st.integers(
    0, (1 << 64) - 1
)
fields = st.builds(
    lambda layout, number: struct.pack(layout, number % (1 << 8 * struct.calcsize(layout))),
    st.sampled_from(["<B", "<H", ">H", "<I", ">I", "<Q", ">Q"]),
    numbers,
)
places = (
    st.integers(0, 128) | st.integers(-512, 1536) | st.sampled_from([n << 16 for n in range(1, 5)]) | st.integers(0)
)
changes = st.lists(st.tuples(places, fields), max_size=4)


@pytest.fixture(scope="module")
def originals(host_parts: None, tmp_path_factory: pytest.TempPathFactory) -> dict[Format, list[bytes]]:
    folder = tmp_path_factory.mktemp("originals")
    found = {fmt: [create(folder / fmt, fmt).read_bytes()] for fmt in QEMU}
    found[Format.QCOW2].append(create(folder / "v2", Format.QCOW2, "compat=0.10").read_bytes())
    found[Format.QCOW2].append(create(folder / "l2", Format.QCOW2, "extended_l2=on,compression_type=zstd").read_bytes())
    found[Format.VHD].append(vhd_dynamic(folder / "dynamic").read_bytes())
    found[Format.VHD].append(vhd_fixed(folder / "fixed", bytes(1 << 16)).read_bytes())
    return found


def judged(path: Path, declared: Format, *, read_only: bool, below: str | None) -> DiskError | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        source = Source(kind=SourceKind.FILE, identity=FileId(0, 0), size_bytes=path.stat().st_size)
        judge(OpenSource(str(path), fd, source), declared, read_only=read_only, below=below)
    except DiskError as error:
        return error
    finally:
        os.close(fd)
    return None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=600)
@given(st.data())
def test_changed_images(originals: dict[Format, list[bytes]], tmp_path: Path, data: st.DataObject) -> None:
    image, fmt = tmp_path / "image", data.draw(st.sampled_from(list(QEMU)))
    content = bytearray(data.draw(st.sampled_from(originals[fmt])))
    for place, new in data.draw(changes):
        at = place % len(content)
        content[at : at + len(new)] = new
    image.write_bytes(content)
    if fmt in SUMS and data.draw(st.booleans()):
        SUMS[fmt](image)
    read_only, below = data.draw(st.booleans()), data.draw(st.none() | st.just("/base"))
    error = judged(image, fmt, read_only=read_only, below=below)
    assert error is None or error.reason in FINAL
    assert error is None or error.message.startswith(f"image {image}")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=1600), st.sampled_from(Format))
@example(b"QFI\xfb\x00\x00\x00\x03", Format.QCOW2)
@example(b"conectix", Format.VHD)
@example(b"", Format.RAW)
def test_any_bytes(tmp_path: Path, content: bytes, declared: Format) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    error = judged(image, declared, read_only=False, below=None)
    assert error is None or error.reason in FINAL
    assert error is not None or declared in {Format.RAW, Format.AIO}


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason=WHY_NOT)
def test_no_bytes_get_a_header_out_of_step(originals: dict[Format, list[bytes]], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    formats = list(Format)
    for fmt, contents in originals.items():
        for number, content in enumerate(contents):
            (corpus / f"{fmt}-{number}").write_bytes(bytes([formats.index(fmt)]) + content[:4096] + content[-512:])
    command = [sys.executable, "-m", "tests.images.fuzz_atheris"]
    options = [f"-max_total_time={SECONDS}", "-max_len=8192", f"-artifact_prefix={tmp_path}/", str(corpus)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "DONE" in done.stderr
