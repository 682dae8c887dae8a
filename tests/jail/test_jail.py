"""What a process in a jail sees and can do, asked of the kernel and of a process that tries."""

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reconcilers.jail import enter
from reconcilers.jail.profile import LIMITS
from tests.jail.cells import Cell, jailed, jailed_without, libraries_of, script, sleeper

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.usefixtures("host_parts"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]

LIMIT_NAMES = {
    resource.RLIMIT_AS: "Max address space",
    resource.RLIMIT_NOFILE: "Max open files",
    resource.RLIMIT_CORE: "Max core file size",
}


def limits_hold(cell: Cell) -> bool:
    lines = Path(f"/proc/{cell.pid}/limits").read_text().splitlines()
    rows = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    return all(rows[LIMIT_NAMES[which]] == [str(limit)] * 2 for which, limit in LIMITS)


def sees_only_its_own(cell: Cell) -> bool:
    """Its root is a small file system of its own, and of the host's there are single files alone."""
    rows = [line.split() for line in Path(f"/proc/{cell.pid}/mountinfo").read_text().splitlines()]
    of_the_host = [row for row in rows if row[4] != "/"]
    root = next(row for row in rows if row[4] == "/")
    return "tapster" in root and all("ro" in row[5].split(",") and row[3] != "/" for row in of_the_host)


HOLDS: dict[str, Callable[[Cell], bool]] = {
    "user namespace": lambda cell: not cell.shares("user"),
    "network namespace": lambda cell: not cell.shares("net"),
    "other namespaces": lambda cell: not any(cell.shares(kind) for kind in ("ipc", "uts", "cgroup")),
    "file tree": sees_only_its_own,
    "limits": limits_hold,
    "user": lambda cell: cell.status("Uid").split() == cell.status("Gid").split() == ["65534"] * 4,
    "capabilities": lambda cell: (
        {cell.status(f"Cap{which}") for which in ("Prm", "Eff", "Bnd", "Amb")} == {f"{2:016x}"}
    ),
    "no new privileges": lambda cell: cell.status("NoNewPrivs") == "1",
    "seccomp": lambda cell: cell.status("Seccomp") == "2",
}
"""How to see from outside that a piece of the jail is there."""


@pytest.mark.parametrize("piece", HOLDS)
def test_each_piece_is_there_and_is_what_makes_the_difference(piece: str) -> None:
    wanted = sleeper(mounts=False)
    wanted.landlocked = False
    with jailed(wanted) as cell:
        assert HOLDS[piece](cell)
    with jailed_without(piece, wanted) as cell:
        assert not HOLDS[piece](cell)


def test_landlock_closes_what_the_file_tree_leaves_open() -> None:
    wanted = sleeper(mounts=False)
    wanted.program, wanted.arguments = "/usr/bin/ls", ["ls", "/"]
    wanted.files = sorted({*wanted.files, "/usr/bin/ls", *libraries_of("/usr/bin/ls")})
    with jailed(wanted) as cell:
        assert "cannot open directory '/': Permission denied" in cell.printed()
    with jailed_without("landlock", wanted) as cell:
        assert "proc" in cell.printed().split()


OPEN_FOR_WRITING = """
import json, os, sys
def outcome(number, flags):
    try:
        os.close(os.open(f"/proc/self/fd/{number}", flags))
    except OSError as error:
        return error.strerror
    return "done"
print(json.dumps([[outcome(number, flags) for flags in (os.O_RDONLY, os.O_RDWR, os.O_TRUNC)] for number in (3, 4)]))
"""


def test_landlock_lets_an_image_be_written_only_if_it_was_opened_so(tmp_path: Path) -> None:
    base, image, words = tmp_path / "base", tmp_path / "image", tmp_path / "words"
    base.write_text("many boot from it")
    base.chmod(0o444)
    image.touch()
    words.write_text(OPEN_FOR_WRITING)
    with (
        base.open("rb") as read,
        image.open("r+b") as written,
        jailed(script(words, mounts=False), [read.fileno(), written.fileno()]) as cell,
    ):
        outcomes = json.loads(cell.printed())
    assert outcomes == [["done", "Permission denied", "Permission denied"], ["done"] * 3]
    assert base.read_text() == "many boot from it"


def test_every_piece_is_looked_at() -> None:
    assert {name for name, _ in enter.PIECES} == {*HOLDS, "landlock"}


def test_with_an_export_to_mount_it_has_one_capability_more_and_none_over_the_host() -> None:
    with jailed(sleeper()) as cell:
        assert {cell.status(f"Cap{which}") for which in ("Prm", "Eff", "Bnd", "Amb")} == {f"{1 << 21 | 2:016x}"}
        assert not cell.shares("user")
        assert sees_only_its_own(cell)


def test_it_leads_a_session_and_ignores_no_signal() -> None:
    with jailed(sleeper()) as cell:
        assert os.getsid(cell.pid) == cell.pid
        assert int(cell.status("SigIgn"), 16) == 0


@pytest.fixture
def aims(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What of the host a prisoner could reach if its jail did not hold."""
    secret = tmp_path / "secret"
    secret.write_text("another tenant's")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        name = f"tapster-{os.getpid()}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        yield {
            "tester": os.getpid(),
            "port": listener.getsockname()[1],
            "abstract": name,
            "secret": str(secret),
            "other_tap": str(tmp_path),
            "try": None,
        }


@pytest.mark.parametrize("mounts", [True, False])
def test_a_prisoner_gets_nowhere(aims: dict[str, Any], mounts: bool) -> None:
    with jailed(script(HERE / "prisoner.py", json.dumps(aims), mounts=mounts)) as cell:
        printed = cell.printed()
    outcomes = json.loads(printed)
    assert set(outcomes.pop("/")) <= {"dev", "lib", "lib64", "proc", "tmp", "usr"}
    assert {name: what for name, what in outcomes.items() if what == "done"} == {}


def test_what_a_prisoner_tries_works_outside(aims: dict[str, Any]) -> None:
    """Otherwise the test above would show nothing. Only what does no harm."""
    aims["try"] = [
        "read a file of the host",
        "read /etc/shadow",
        "look into another tap's folder",
        "see another process",
        "connect to loopback",
        "connect to an abstract socket",
        "kill the agent",
        "limit the agent",
        "take a handle on the agent",
    ]
    command = [sys.executable, "-I", "-S", "-c", (HERE / "prisoner.py").read_text(), json.dumps(aims)]
    outcomes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert {name: outcomes[name] for name in aims["try"]} == dict.fromkeys(aims["try"], "done")
