"""Machines with tapster's package installed. `deploy/test --system` installs what making and booting them takes."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system import emulator
from tests.system.machine import CHECKOUT, Machine, booted

NEWER = "9.0.0"
MADE_BY_THE_WAY = {"__pycache__", ".ansible"}
PACKAGED = ("agent", "reconcilers", "systemd", "deploy", "pyproject.toml", "README.md", "LICENSE")
TOOLS = ("mmdebstrap", "systemd-nspawn", "dpkg-buildpackage", "dh")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Only where this folder is named on the command line."""
    parser.addoption("--taps", type=int, default=None, help="taps at once, where many are brought up")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A boot, a package or a root file system may have to be made first, on a machine that is busy."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="module", autouse=True)
def _written_back() -> Iterator[None]:
    """Gigabytes of root file systems go to the disk now, and not while an agent of a later test waits for its fsync."""
    yield
    os.sync()


@dataclass(frozen=True)
class Packages:
    """Tapster's Debian package in two versions."""

    current: Path
    newer: Path


@pytest.fixture(scope="session")
def base_root() -> Path:
    """A Debian with a systemd and without tapster."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: run deploy/test --system once")
    return _made("deploy/lib/make-root") / "root"


@pytest.fixture(scope="session")
def packages(base_root: Path) -> Packages:
    """The package, and the same with a higher version: what dpkg and systemd do is decided by that alone.

    Both are kept until the sources change.
    """
    folder = CHECKOUT / ".cache/packages" / _digest_of_sources()
    if not folder.exists():
        shutil.rmtree(folder.parent, ignore_errors=True)
        draft = folder.with_suffix(".draft")
        _newer(_made("deploy/build-deb", "--output", draft), draft / "newer")
        draft.rename(folder)
    newer = folder / "newer.deb"
    (current,) = set(folder.glob("*.deb")) - {newer}
    return Packages(current, newer)


def _digest_of_sources() -> str:
    """Of all that goes into the package."""
    roots = [CHECKOUT / part for part in PACKAGED]
    files = [file for root in roots for file in ([root] if root.is_file() else root.rglob("*")) if file.is_file()]
    digest = hashlib.sha256()
    for file in sorted(file for file in files if not MADE_BY_THE_WAY & set(file.parts)):
        digest.update(str(file).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _newer(package: Path, folder: Path) -> None:
    subprocess.run(["dpkg-deb", "--raw-extract", package, folder], check=True)
    control = folder / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*", f"Version: {NEWER}-1", control.read_text()))
    (metadata,) = folder.glob("usr/lib/tapster/lib/python3.*/site-packages/tapster-*.dist-info/METADATA")
    metadata.write_text(re.sub(r"(?m)^Version: .*", f"Version: {NEWER}", metadata.read_text()))
    file = folder.with_suffix(".deb")
    subprocess.run(["dpkg-deb", "--build", "-Zgzip", "-z1", folder, file], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder)


def _made(*words: str | Path) -> Path:
    """What a program of deploy/ has made, as it prints in its last line."""
    done = subprocess.run([CHECKOUT / words[0], *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or done.stdout
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def installed_root(base_root: Path, packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What installing the package adds to the base: one more layer."""
    layer = tmp_path_factory.mktemp("layer") / "installed"
    with booted([base_root], layer) as machine:
        machine.install(packages.current)
    return layer


@pytest.fixture
def machine(installed_root: Path, base_root: Path) -> Iterator[Machine]:
    """A booted system on which the package was installed before."""
    with booted([installed_root, base_root]) as one:
        yield one


@pytest.fixture
def pass_in_an_emulated_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs tests in a machine of its own, shows its console at once, and fails unless all were run and passed."""

    def check(layers: list[Path], tests: str, kind: emulator.Kind = emulator.PC) -> None:
        if lacking := emulator.missing():
            pytest.skip(f"this machine has no {lacking}")
        said: list[str] = []

        def tell(line: str) -> None:
            said.append(line)
            with capsys.disabled():
                print(f"\n  | {line}", end="", flush=True)  # noqa: T201 - it takes minutes

        command = f"/usr/bin/python3 -m pytest -v --durations=8 --color=no -p no:cacheprovider {tests}"
        assert emulator.run(layers, tmp_path, command, tell, kind=kind) == 0, "\n".join(said)
        assert not [line for line in said if line.startswith("SKIPPED")]

    return check
