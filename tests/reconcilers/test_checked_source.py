"""Images that change in the moment between the look at them and the lock on them."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from reconcilers import backend
from reconcilers.errors import DiskError
from reconcilers.exclusive import claim
from reconcilers.images import Verdict
from reconcilers.pools import Pools
from reconcilers.reason import Reason
from reconcilers.source import OpenSource, pinned
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format
from tests.images.makers import MIB, create, put, vhd_fixed

Meanwhile = Callable[[Callable[[], object]], None]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Have something done after the look and before the lock."""

    def do(change: Callable[[], object]) -> None:
        def late(image: OpenSource, spec: DiskSpec) -> None:
            change()
            claim(image, spec)

        monkeypatch.setattr(backend, "claim", late)

    return do


def verdict(image: Path, fmt: Format) -> Verdict:
    spec = DiskSpec(key=DiskKey("vm1", "vda"), source=str(image), backend=Backend.BLKTAP, format=fmt)

    async def checked() -> Verdict:
        with pinned(str(image), Pools(folders=(image.parent,))) as pin:
            async with backend.checked_source(spec, pin, claimed=True) as source:
                return source.verdict

    return asyncio.run(checked())


def test_a_header_that_was_written_after_the_look_is_seen(
    host_parts: None, tmp_path: Path, meanwhile: Meanwhile
) -> None:
    image = create(tmp_path / "a.qcow2", Format.QCOW2)
    assert verdict(image, Format.QCOW2) == Verdict()
    meanwhile(lambda: put(">QI", 8, 512, 11)(image))
    with pytest.raises(DiskError) as refused:
        verdict(image, Format.QCOW2)
    assert refused.value.reason is Reason.BACKING_UNDECLARED


def test_the_length_that_counts_is_that_under_the_lock(tmp_path: Path, meanwhile: Meanwhile) -> None:
    image = vhd_fixed(tmp_path / "a.vhd", bytes(MIB))
    assert verdict(image, Format.VHD).raw_size == MIB
    meanwhile(lambda: vhd_fixed(image, bytes(2 * MIB)))
    assert verdict(image, Format.VHD).raw_size == 2 * MIB
