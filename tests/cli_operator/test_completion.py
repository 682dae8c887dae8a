"""What a shell is offered: the bus's names, and nothing at all where there is no bus. As a shell asks, in a process."""

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from agent.bus.topics import Topics
from agent.settings import Settings
from tests.broker import Broker, free_port
from tests.cli_operator.fake_host import Put, birth

DB1, DB2 = Topics("lab", "db1"), Topics("lab", "db2")
PROGRAM = "import sys; sys.argv[0] = 'tapster'; from agent.cli.app import main; main()"
PATIENT = f"from agent.fleet import names; names.BUS_SECONDS = names.ALL_SECONDS = 60.0; {PROGRAM}"
"""An operator rather gets no names than waits for them; a test on a slow machine waits."""


def config(folder: Path, port: int) -> Path:
    path = folder / "tapster.toml"
    path.write_text(f'host = "here"\nfleet = "lab"\nbroker.port = {port}\npaths.runtime = "{folder}/run"\n')
    return path


def offered(line: str, settings_file: Path, program: str = PATIENT) -> tuple[list[str], str]:
    """What bash is offered at the end of a line, and what is said besides; the words are cut as bash does it."""
    words = ["tapster", *re.findall("=+|[^ =]+|(?<= )$", line)]
    environment = {
        "_TAPSTER_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "TAPSTER_CONFIG": str(settings_file),
    }
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return result.stdout.split(), result.stderr


@pytest.fixture
def file(settings: Settings, put: Put, tmp_path: Path) -> Path:
    put(DB1.agent, birth(groups=("web",), labels={"site": "ams", "rack": "12", "spare": ""}))
    put(DB2.agent, birth("lost", labels={"site": "fra", "rack": "17", "$(reboot)": "x", "size": "$(reboot)"}))
    put(DB1.desired("vm1"), b"<domain/>")
    put(DB2.desired("vm2"), b"<domain/>")
    put(DB1.group_desired("batch", "vm3"), b"<domain/>")
    put(f"{DB1.prefix}/hosts/db1/desired/guests/$(reboot)", b"<domain/>")
    put(f"{DB1.prefix}/hosts/odd/agent", b'["no birth"]')
    put(f"{DB1.prefix}/hosts/odder/agent", b'{"labels": {"site": ["ams"]}}')
    for rollout, phase in {"abc": "rolling", "abd": "stopped", "abe": "done", "abf": "$(reboot)"}.items():
        put(DB1.rollout(rollout, "state"), json.dumps({"phase": phase}).encode())
    (tmp_path / "run/disks/vm1").mkdir(parents=True)
    (tmp_path / "run/disks/vm1/vda").symlink_to("/dev/null")
    (tmp_path / "run/disks/vm1/.vdb.new").symlink_to("/dev/null")
    return config(tmp_path, settings.broker.port)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("push --host d", ["db1", "db2"]),
        ("push --host=d", ["db1", "db2"]),
        ("resync --host d", ["db1", "db2"]),
        ("push --group ", ["batch", "web"]),
        ("absent ", ["vm1", "vm2", "vm3"]),
        ("status --host db1 vm", ["vm1", "vm3"]),
        ("describe host db2", ["db2"]),
        ("get disks vm2", ["vm2"]),
        ("get ", ["disks", "guests", "hosts"]),
        ("get hosts -l ", ["rack=", "site=", "spare="]),
        ("get hosts -l si", ["site=ams", "site=fra"]),
        ("get hosts -l site=", ["ams", "fra"]),
        ("get hosts -l site=a", ["ams"]),
        ("get hosts --selector=site=a", ["ams"]),
        ("get hosts -l site==f", ["fra"]),
        ("get hosts -l rack!=1", ["12", "17"]),
        ("get hosts -l site=fra,", ["fra,rack=17"]),
        ("get hosts -l rack,s", ["rack,site=", "rack,spare="]),
        ("get hosts -l site=ams,rack=1", ["12"]),
        ("get hosts -l !s", ["!site", "!spare"]),
        ("get hosts -l site=nowhere,", []),
        ("get hosts -l site=,=", []),
        ("rollout status ", ["abc", "abd", "abe"]),
        ("rollout undo abe", ["abe"]),
        ("rollout resume ", ["abc", "abd"]),
        ("rollout abort ", ["abc", "abd"]),
        ("rollout forget ", ["abd", "abe"]),
        ("rollout web.xml -l rack=", ["12", "17"]),
        ("rollout --absent vm", ["vm1", "vm2", "vm3"]),
        ("events --type disk.", ["disk.phase", "disk.outage"]),
        ("events --phase F", ["Failed"]),
        ("quiesce ", ["vm1"]),
        ("quiesce vm1 ", ["vda"]),
        ("grow vm2 ", []),
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
    assert offered("push --host ", file, PROGRAM) == ([], "")


def typed(shell: Sequence[str], setup: str, keys: str, folder: Path, settings_file: Path) -> list[str]:
    """What a command is called with that is typed in an interactive shell; a tab completes, as it does at a terminal.

    Args:
        shell: How it is started.
        setup: What it reads at its start, from `folder`.
        keys: What is typed.
        folder: The test's.
        settings_file: Which broker has the names.
    """
    program = folder / "tapster"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(PATIENT)} "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "TAPSTER_CONFIG": str(settings_file),
        "ZDOTDIR": str(folder),
    }
    told = folder / "told"
    end = f"""tapster() {{ printf '%s\\n' "$@" >{shlex.quote(str(told))}; exit; }}\n"""
    for name in ("bashrc", ".zshrc"):
        (folder / name).write_text(setup + end)
    mine, its = pty.openpty()
    with subprocess.Popen(shell, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True) as running:
        os.close(its)
        os.write(mine, f"{keys}\n".encode())
        with suppress(OSError):  # the terminal's end, once the shell has left
            while os.read(mine, 4096):
                pass
        running.wait(120)
    os.close(mine)
    return told.read_text().splitlines()


def typed_into_bash(keys: str, folder: Path, settings_file: Path) -> list[str]:
    setup = 'eval "$(_TAPSTER_COMPLETE=source_bash tapster)"\n'
    return typed(["bash", "--noprofile", "--rcfile", f"{folder}/bashrc", "-i"], setup, keys, folder, settings_file)


def typed_into_zsh(keys: str, folder: Path, settings_file: Path) -> list[str]:
    # The program is called by its path: the function of its name, which ends the shell, is not for completion.
    setup = f"""
        autoload -U compinit; compinit -u -d {folder}/dump
        unsetopt zle_bracketed_paste
        eval "$(_TAPSTER_COMPLETE=source_zsh tapster | sed 's#zsh tapster#zsh {folder}/tapster#')"
    """
    return typed(["zsh", "-i"], setup, keys, folder, settings_file)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("tapster push a.xml -l sit\ta\t", ["push", "a.xml", "-l", "site=ams"]),
        ("tapster push a.xml --host=db1\t", ["push", "a.xml", "--host=db1"]),
        (
            "tapster push --selector=site=fra,ra\t --abs\tvm3\t",
            ["push", "--selector=site=fra,rack=17", "--absent", "vm3"],
        ),
        ("tapster get hosts -l 'site=a\t -o wide", ["get", "hosts", "-l", "site=ams", "-o", "wide"]),
        ("tapster rollout forget abe\t", ["rollout", "forget", "abe"]),
    ],
)
def test_in_an_interactive_bash_a_tab_completes_the_line(
    file: Path, tmp_path: Path, keys: str, words: list[str]
) -> None:
    assert typed_into_bash(keys, tmp_path, file) == words


@pytest.mark.skipif(shutil.which("zsh") is None, reason="apt-get install zsh")
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("tapster push a.xml --group=ba\t", ["push", "a.xml", "--group=batch"]),
        ("tapster push a.xml --host db1\t", ["push", "a.xml", "--host", "db1"]),
        ("tapster get hosts --selector=site=a\t", ["get", "hosts", "--selector=site=ams"]),
        ("tapster get hosts -l site=a\t", ["get", "hosts", "-l", "site=ams"]),
    ],
)
def test_in_an_interactive_zsh_a_tab_completes_the_line(
    file: Path, tmp_path: Path, keys: str, words: list[str]
) -> None:
    assert typed_into_zsh(keys, tmp_path, file) == words
