"""`tapster inspect`, as tools and people see it."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.cli.inspect import run
from tests.definition.samples import domain

FILE = "<source file='/a'/><target dev='vda' x='1'/>"
GOOD = f"<disk type='file'><driver name='qemu' type='qcow2' io='native'/>{FILE}</disk>"
BAD = "<disk type='network'><source protocol='rbd' name='p/i'/><target dev='vdb'/></disk>"


def inspect(capsys: pytest.CaptureFixture[str], *files: Path) -> tuple[int, Any, str]:
    code = run(list(files), "json")
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_json_is_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "web.xml"
    file.write_bytes(domain(GOOD, BAD))
    code, [found], err = inspect(capsys, file)
    assert (code, err) == (1, "")
    assert list(found) == ["file", "guest", "disks", "errors"]
    assert (found["file"], found["guest"]) == (str(file), "web")
    assert found["disks"][0] == {
        "target": "vda",
        "device": "disk",
        "type": "file",
        "source": "/a",
        "backend": "blktap",
        "format": "qcow2",
        "read_only": False,
        "shareable": False,
        "honoured": ["@type", "driver/@name", "driver/@type", "source/@file", "target/@dev"],
        "passed": [],
        "unhonoured": ["driver/@io"],
        "unknown": ["target/@x"],
        "refused": [],
    }
    assert found["disks"][1]["backend"] is None
    (refused,) = found["disks"][1]["refused"]
    assert (refused["path"], refused["reason"]) == ("/domain/devices/disk[2]/@type", "UnsupportedSource")
    assert found["errors"] == [{"line": 3, **refused}]


def test_exit_code_is_0_when_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "web.cfg"
    file.write_text("name = 'web'\ndisk = [ 'phy:/dev/a,xvda,w' ]\n")
    code, [found], _ = inspect(capsys, file)
    assert (code, found["guest"], found["errors"]) == (0, "web", [])
    assert found["disks"][0]["honoured"] == ["target", "vdev", "access"]


def test_every_definition_of_every_file_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several, missing, prose = tmp_path / "a.xml", tmp_path / "b.xml", tmp_path / "c.txt"
    several.write_bytes(domain(GOOD) + b"\n<domain/>\n" + domain(GOOD, name="db"))
    prose.write_text("nothing here\n")
    code, found, _ = inspect(capsys, several, missing, prose)
    assert code == 1
    assert [(Path(each["file"]).name, each["guest"], len(each["disks"])) for each in found] == [
        ("a.xml", "web", 1),
        ("a.xml", None, 0),
        ("a.xml", "db", 1),
        ("b.xml", None, 0),
        ("c.txt", None, 0),
    ]
    assert [error["reason"] for each in found for error in each["errors"]] == [
        "InvalidName",
        "Unreadable",
        "NotADomain",
    ]
    assert found[1]["errors"][0]["line"] == 4


def test_wrapped_domains_and_snapshots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.xml"
    for root, names in (("domains", ["web", "db"]), ("domstatus", ["web", "db"]), ("domainsnapshot", [None])):
        file.write_bytes(b"<%b>%b%b</%b>" % (root.encode(), domain(), domain(name="db"), root.encode()))
        assert [found["guest"] for found in inspect(capsys, file)[1]] == names


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.TextIOWrapper(io.BytesIO(domain(GOOD)))
    monkeypatch.setattr(sys, "stdin", stream)
    code, [found], _ = inspect(capsys, Path("-"))
    assert (code, found["file"], found["guest"]) == (0, "-", "web")


def test_a_file_without_end_is_not_read_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    code, [found], _ = inspect(capsys, Path("/dev/zero"))
    assert (code, found["errors"][0]["reason"]) == (1, "DocumentTooLarge")
    assert "more than 262144 bytes" in found["errors"][0]["message"]


def test_people_get_a_table_and_the_errors_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    file = tmp_path / "web.xml"
    file.write_bytes(domain(GOOD, BAD, "<disk><source file='/a&#x9b;2J[red]'/><target dev='vdc'/></disk>"))
    assert run([file], "table") == 1
    captured = capsys.readouterr()
    assert "web (" in captured.out
    for text in ("vda", "blktap", "qcow2", "not honoured: driver/@io", "unknown: target/@x", "\\x9b2J[red]"):
        assert text in captured.out
    assert f"{file}:3: UnsupportedSource: " in captured.err
    assert "\x9b" not in captured.out + captured.err
