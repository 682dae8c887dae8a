"""`tapster watch` and `tapster broker`, which hold the foreground, as processes."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.bus.topics import Topics
from agent.cli import broker as command
from agent.settings import Settings
from agent.status import Phase
from reconcilers.reason import Reason
from tests.broker import free_port
from tests.cli_operator.fake_host import Put, birth, disk, guest

TOPICS = Topics("lab", "db1")


@contextmanager
def tapster(*words: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", "from agent.cli.app import main; main()", *words]
    with log.open("wb") as out, log.with_suffix(".errors").open("wb") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def config(settings: Settings, tmp_path: Path) -> Path:
    path = tmp_path / "tapster.toml"
    path.write_text(f'host = "here"\nfleet = "lab"\nbroker.port = {settings.broker.port}\n')
    return path


def test_watch_prints_a_line_for_each_change_and_ends_with_ctrl_c(config: Path, put: Put, tmp_path: Path) -> None:
    log = tmp_path / "log"
    put(TOPICS.agent, birth())
    with tapster("watch", "--config", str(config), log=log) as process:
        until(lambda: "db1 online" in log.read_text())
        put(TOPICS.status("vm1"), guest(disk("vda", Phase.UP)).model_dump_json().encode())
        until(lambda: "db1/vm1/vda Up loop raw /dev/loop7" in log.read_text())
        failed = disk("vda", Phase.LOST, Reason.SERVER_LOST, "it died")
        put(TOPICS.status("vm1"), guest(failed).model_dump_json().encode())
        until(lambda: "db1/vm1/vda Lost loop raw ServerLost: it died" in log.read_text())
        put(TOPICS.status("vm1"), b"")
        until(lambda: "db1/vm1/vda gone" in log.read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert len(log.read_text().splitlines()) == 7, "a line for each change, and none besides"


@pytest.mark.parametrize("command", [("watch",), ("events", "-f")])
def test_a_host_that_never_was_is_waited_for_with_a_word(
    command: tuple[str, ...], config: Path, put: Put, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    put(TOPICS.agent, birth())
    with tapster(*command, "--host", "db7", "--config", str(config), log=log) as process:
        until(lambda: log.with_suffix(".errors").read_text())
        time.sleep(2.5)  # the screen's tick is a second, and it is not said again with each
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    [said] = log.with_suffix(".errors").read_text().splitlines()
    assert said.startswith(f"tapster {command[0]}: host 'db7' has never been in fleet 'lab'")
    assert log.read_text() == ""


def test_the_broker_listens_until_it_is_stopped_and_keeps_what_is_retained(tmp_path: Path) -> None:
    port = free_port()
    words = ("broker", "--dev", "--port", str(port), "--folder", str(tmp_path / "new" / "folder"))
    for _ in range(2):
        with tapster(*words, log=tmp_path / "log") as process:
            until(lambda: listens(port))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    assert (tmp_path / "new/folder/mosquitto.db").exists()


def test_a_port_that_there_is_not(tmp_path: Path) -> None:
    with tapster("broker", "--dev", "--port", "99999", "--folder", str(tmp_path), log=tmp_path / "log") as process:
        assert process.wait(60) == 2
    assert "less than or equal to 65535" in (tmp_path / "log.errors").read_text()


def test_the_broker_says_why_it_cannot_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert command.run(True, port, tmp_path) == 1
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert command.run(True, free_port(), tmp_path / "file") == 1
    assert "cannot write to" in capsys.readouterr().err
    assert command.run(False, free_port(), tmp_path) == 2
    assert "--dev" in capsys.readouterr().err
    monkeypatch.setattr(command, "mosquitto", lambda: None)
    assert command.run(True, free_port(), tmp_path) == 1
    assert "apt-get install mosquitto" in capsys.readouterr().err
