"""What several of these tests need."""

from pathlib import Path

import pytest


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of 1 MiB, without a hole."""
    path = tmp_path / "a.img"
    path.write_bytes(bytes(1 << 20))
    return path
