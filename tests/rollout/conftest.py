"""What tests of rollouts share: a fleet of fakes, the command line, and a definition."""

from pathlib import Path

import pytest

from agent.settings import Settings
from tests.cli_operator.conftest import own_broker, put, settings  # noqa: F401 - fixtures
from tests.cli_operator.test_targets import XML, Tapster


@pytest.fixture
def tapster(settings: Settings, tmp_path: Path) -> Tapster:  # noqa: F811
    return Tapster(settings, tmp_path)


@pytest.fixture
def file(tapster: Tapster, tmp_path: Path) -> Path:
    return definition(tmp_path, "new")


def definition(folder: Path, image: str) -> Path:
    """A definition of vm1 on an image of that name."""
    path = folder / f"{image}.xml"
    path.write_text(XML.format(f"/images/{image}.img"))
    return path
