"""`pip install .` as a service: the commands of OPERATING.md, run as they stand there."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import CHECKOUT, CHECKOUT_INSIDE, Machine, booted
from tests.system.writer import writing
from tests.workbench import loop_disk, tap_disk

ONLY_FROM_HERE = "[global]\nno-index = true\nfind-links = /root/wheels\n"


@pytest.fixture
def bare(base_root: Path) -> Iterator[Machine]:
    """A booted Debian without tapster, with the wheels that pip would fetch: it has no network."""
    with booted([base_root]) as machine:
        for lock in ("agent.lock", "build.lock"):
            fetching = [sys.executable, "-m", "pip", "--quiet", "download", "--require-hashes", "--only-binary=:all:"]
            place = machine.root / "root/wheels"
            subprocess.run([*fetching, "-r", CHECKOUT / "deploy/locks" / lock, "-d", place], check=True)
        machine.write("/etc/pip.conf", ONLY_FROM_HERE)
        yield machine


def commands() -> list[str]:
    """The blocks of commands that install, upgrade and remove."""
    guide = (CHECKOUT / "deploy/OPERATING.md").read_text()
    _, _, section = guide.partition("Without the package")
    section, _, _ = section.partition("What the units do")
    return re.findall(r"(?ms)^```\n(.*?)^```", section)


def test_it_is_installed_upgraded_and_removed_as_the_guide_says(bare: Machine) -> None:
    install, upgrade, remove = (f"cd {CHECKOUT_INSIDE}\n{block}" for block in commands())
    bare.shell(install)
    assert bare.is_active("tapster.service")
    assert bare.is_active("tapster-disks.target")
    done = bare.run("sh", "-c", "systemd-analyze verify /etc/systemd/system/tapster*", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    bare.configure()
    bare.shell("systemctl restart tapster")
    bare.push("pip1", loop_disk("vda", bare.image("a.raw", "8M")), tap_disk("vdb", bare.image("b.raw", "8M")))
    before = bare.disks()
    assert before["pip1/vdb"]["effective"]["tap"]["unit"].startswith("tapster-tap@")
    with writing(bare, "pip1", "vda", "vdb"):
        bare.shell(upgrade)
        bare.in_step()
        for name, disk in bare.disks().items():
            assert (disk["phase"], disk["diskseq"]) == ("Up", before[name]["diskseq"])
        bare.shell(remove)
        assert "tapster" not in bare.shell("systemctl list-unit-files --no-legend 'tapster.service' || true")
