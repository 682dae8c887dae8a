"""An image whose lock has no holder that can be found: it is going, or it is one to leave alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from reconcilers import exclusive
from reconcilers.actual import FileId
from reconcilers.errors import DiskError
from reconcilers.holders import Holder, holders_of_file
from reconcilers.image_lock import lock_image
from reconcilers.pools import Pools
from reconcilers.reason import Reason
from reconcilers.source import opened, pinned
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format


@contextmanager
def locked(image: Path) -> Iterator[IO[bytes]]:
    """The image, open and locked in this very process, which no look for holders tells of."""
    with image.open("r+b") as file:
        assert lock_image(file.fileno(), read_only=False, shareable=False)
        yield file


def claim(image: Path, backend: Backend = Backend.LOOP, fmt: Format = Format.RAW, *, shareable: bool = False) -> None:
    spec = DiskSpec(key=DiskKey("vm1", "vda"), source=str(image), backend=backend, format=fmt, shareable=shareable)
    with pinned(str(image), Pools(folders=(image.parent,))) as pin, opened(pin, writable=True) as source:
        exclusive.claim(source, spec)


def test_a_lock_that_stays_is_somebody_s(image: Path) -> None:
    with locked(image), pytest.raises(DiskError, match="a lock whose holder is not visible from here") as refused:
        claim(image)
    assert refused.value.reason is Reason.SOURCE_IN_USE


def test_a_lock_that_goes_while_its_holder_is_looked_for_was_nobody_s(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(image) as file:

        def look_and_let_go(identity: FileId) -> list[Holder]:
            found = holders_of_file(identity)
            file.close()
            return found

        monkeypatch.setattr(exclusive, "holders_of_file", look_and_let_go)
        claim(image)
        assert file.closed


@pytest.mark.parametrize("fmt", sorted(set(Format) - {Format.RAW, Format.AIO}))
def test_nobody_shares_an_image_whose_format_bears_one_writer_only(image: Path, fmt: Format) -> None:
    with pytest.raises(DiskError, match="two who write to one destroy it") as refused:
        claim(image, Backend.BLKTAP, fmt, shareable=True)
    assert refused.value.reason is Reason.UNSUPPORTED_FEATURE
    claim(image, Backend.BLKTAP, fmt)
    claim(image, Backend.BLKTAP, Format.AIO, shareable=True)
