"""What is found out for a tap's tuning, on real files: nothing that is in them may change by it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reconcilers.blktap.grant import grant
from reconcilers.pools import Pools
from reconcilers.source import opened, pinned
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format

TIB = 1 << 40


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.img"
    path.write_bytes(os.urandom(4096))
    return path


def grants_discards(image: Path, meanwhile: Callable[[], object]) -> bool:
    """Whether a raw image's discards are granted; between the look at its length and that, something happens."""
    spec = DiskSpec(key=DiskKey("vm1", "vda"), source=str(image), backend=Backend.BLKTAP, format=Format.AIO)
    with pinned(str(image), Pools(folders=(image.parent,))) as pin:
        meanwhile()
        with opened(pin, writable=True) as source:
            return grant(spec, source, exact=False, through=True).discard


def test_what_is_appended_after_the_first_look_stays(image: Path) -> None:
    appended = os.urandom(1 << 20)

    def append() -> None:
        with image.open("ab") as file:
            file.write(appended)

    before = image.read_bytes()
    assert grants_discards(image, append)
    assert image.read_bytes() == before + appended


@pytest.mark.parametrize("size", [15 * TIB, 16 * TIB - (2 << 30)])
def test_an_image_may_be_almost_as_long_as_its_file_system_allows(image: Path, size: int) -> None:
    os.truncate(image, size)
    assert grants_discards(image, lambda: None)
    assert image.stat().st_size == size
