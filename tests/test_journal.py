"""What the journal is sent, heard on a socket in its place."""

import os
import socket
import struct
from pathlib import Path

import pytest
import structlog

from agent import journal
from agent.log import configure
from tests.test_log import as_it_was  # noqa: F401 - a fixture


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.bind(str(tmp_path / "socket"))
    ear.settimeout(5)
    monkeypatch.setattr(journal.JournalHandler.__init__, "__defaults__", (tmp_path / "socket",))
    return ear


def test_fields_are_the_journal_s_own(journald: socket.socket) -> None:
    configure("info", "journal")
    with structlog.contextvars.bound_contextvars(guest="vm1", target="vda", step="attach"):
        structlog.get_logger("agent.controller").warning("not as desired", next_try_seconds=0.5)
    assert journald.recv(4096).decode().splitlines() == [
        "MESSAGE=not as desired guest=vm1 target=vda step=attach next_try_seconds=0.5",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=tapster",
        "LOGGER=agent.controller",
        "GUEST=vm1",
        "TARGET=vda",
        "STEP=attach",
        "NEXT_TRY_SECONDS=0.5",
    ]


def test_a_value_with_line_breaks_can_not_forge_a_field(journald: socket.socket) -> None:
    configure("info", "journal")
    text = "a\nGUEST=other\n"
    structlog.get_logger("x").info("odd", why=text)
    assert b"WHY\n" + struct.pack("<Q", len(text)) + text.encode() + b"\n" in journald.recv(4096)


def test_a_traceback_is_part_of_the_message(journald: socket.socket) -> None:
    configure("info", "journal")
    try:
        int("no number")
    except ValueError:
        structlog.get_logger("x").exception("a defect")
    record = journald.recv(8192)
    assert record.startswith(b"MESSAGE\n")
    assert b"ValueError: invalid literal" in record


@pytest.mark.parametrize(("name", "field"), [("_PID", "PID"), ("1st", "FIELD_1ST"), ("a-b", "A_B"), ("", "FIELD_")])
def test_a_name_is_one_that_the_journal_takes_and_does_not_trust(name: str, field: str) -> None:
    assert f"{field}=1\n".encode() in journal.encode({"event": "x", "level": "info", name: "1"})


def test_the_journal_is_known_by_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        assert not journal.is_connected(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert journal.is_connected(stream)


def test_what_the_journal_does_not_take_is_not_lost(
    journald: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", "journal")
    journald.close()
    structlog.get_logger("x").info("all the same")
    assert '"event": "all the same"' in capsys.readouterr().err
