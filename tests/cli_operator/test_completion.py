"""What a shell is offered: the bus's names, and nothing at all where there is no bus. As a shell asks, in a process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.bus.topics import Topics
from agent.settings import Settings
from tests.broker import Broker, free_port
from tests.cli_operator.fake_host import Put, birth

DB1, DB2 = Topics("lab", "db1"), Topics("lab", "db2")


def config(folder: Path, port: int) -> Path:
    path = folder / "tapster.toml"
    path.write_text(f'host = "here"\nfleet = "lab"\nbroker.port = {port}\n')
    return path


def offered(line: str, settings_file: Path) -> tuple[list[str], str]:
    """What bash is offered at the end of a line, and what is said besides."""
    words = ["tapster", *line.split(" ")]
    environment = {
        "_TAPSTER_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "TAPSTER_CONFIG": str(settings_file),
    }
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'tapster'; from agent.cli.app import main; main()"]
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60
    )
    return result.stdout.split(), result.stderr


@pytest.fixture
def file(settings: Settings, put: Put, tmp_path: Path) -> Path:
    put(DB1.agent, birth(groups=("web",)))
    put(DB2.agent, birth("lost"))
    put(DB1.desired("vm1"), b"<domain/>")
    put(DB2.desired("vm2"), b"<domain/>")
    put(DB1.group_desired("batch", "vm3"), b"<domain/>")
    put(f"{DB1.prefix}/hosts/db1/desired/guests/$(reboot)", b"<domain/>")
    put(f"{DB1.prefix}/hosts/odd/agent", b'["no birth"]')
    return config(tmp_path, settings.broker.port)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("push --host d", ["db1", "db2"]),
        ("push --group ", ["batch", "web"]),
        ("absent ", ["vm1", "vm2", "vm3"]),
        ("status --host db1 vm", ["vm1", "vm3"]),
        ("describe host db2", ["db2"]),
        ("get disks vm2", ["vm2"]),
    ],
)
def test_names_are_offered_as_the_bus_has_them(file: Path, line: str, names: list[str]) -> None:
    assert offered(line, file) == (names, "")


def test_without_a_broker_nothing_is_offered_and_nothing_said(tmp_path: Path) -> None:
    assert offered("push --host ", config(tmp_path, free_port())) == ([], "")


def test_a_broker_that_does_not_answer_keeps_nobody_waiting(own_broker: Broker, tmp_path: Path) -> None:
    file = config(tmp_path, own_broker.port)
    file.write_text(f"{file.read_text()}broker.connect_timeout = 300\n")
    own_broker.signal(signal.SIGSTOP)
    assert offered("push --host ", file) == ([], "")
