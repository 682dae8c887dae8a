"""The pinned libraries of the Debian package fit what pyproject.toml asks for, and name nowhere to fetch them from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
WRITE_ANEW = "write it anew, see deploy/locks/README"


def pins(lock: str) -> dict[str, str]:
    """Name and version of each pinned library."""
    text = (CHECKOUT / "deploy/locks" / lock).read_text()
    return {canonicalize_name(name): version for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", text)}


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("agent.lock", PROJECT["project"]["dependencies"]),
        ("build.lock", PROJECT["build-system"]["requires"]),
    ],
)
def test_a_lock_has_what_is_asked_for(lock: str, wanted: list[str]) -> None:
    for requirement in map(Requirement, wanted):
        version = pins(lock).get(canonicalize_name(requirement.name))
        assert version, f"{requirement} is not in {lock}; {WRITE_ANEW}"
        assert version in requirement.specifier, f"{lock} has {requirement.name} {version}, not {requirement.specifier}"


@pytest.mark.parametrize("lock", ["agent.lock", "build.lock"])
def test_a_lock_is_of_versions_and_hashes_alone(lock: str) -> None:
    lines = (CHECKOUT / "deploy/locks" / lock).read_text().splitlines()
    line = re.compile(r"[\w.-]+==[\w.]+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert not [text for text in lines if not line.fullmatch(text)]
