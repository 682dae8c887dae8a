"""An image judged as it would be on a host: found in its pool, and read through its descriptor."""

from pathlib import Path

import pytest

from reconcilers.errors import DiskError
from reconcilers.images import Verdict, judge
from reconcilers.pools import Pools
from reconcilers.source import inspected, pinned
from reconcilers.spec import Format


def judged(path: Path, declared: Format, *, read_only: bool = False, below: str | None = None) -> Verdict:
    """The verdict on an image as it is found on a host."""
    with pinned(str(path), Pools(folders=(path.parent,))) as pin:
        return inspected(pin, lambda image: judge(image, declared, read_only=read_only, below=below))


def refusal(path: Path, declared: Format, *, read_only: bool = False, below: str | None = None) -> DiskError:
    """Why an image is refused."""
    with pytest.raises(DiskError) as refused:
        judged(path, declared, read_only=read_only, below=below)
    assert str(path) in refused.value.message
    return refused.value
