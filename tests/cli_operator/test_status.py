"""`tapster status`: what is on the bus, in a table, in sentences, in JSON and in an exit code."""

import json

import pytest

from agent.bus.topics import Topics
from agent.cli import status
from agent.fleet.targets import Selection
from agent.setting_sections import BrokerSettings
from agent.settings import Settings
from agent.status import GuestStatus, Phase
from reconcilers.reason import Reason
from tests.cli_operator.fake_host import Put, birth, disk, guest

TOPICS = Topics("lab", "db1")


def test_all_is_well(settings: Settings, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put(TOPICS.agent, birth())
    put(TOPICS.status("vm1"), guest(disk("vda", Phase.UP)).model_dump_json().encode())
    assert status.run(wanted=None, guest=None, settings=settings, output="table") == 0
    out, err = capsys.readouterr()
    assert "host db1: online, tapster 1.2.3, loop" in out
    row = next(line for line in out.splitlines() if "vda" in line)
    for cell in ("vm1", "Up", "loop raw", "4.0 GiB", "/dev/loop7", "/run/tapster/disks/vm1/vda"):
        assert cell in row
    assert err == ""


def test_what_is_wrong_stands_in_a_sentence_with_what_to_do(
    settings: Settings, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = disk("vdb", Phase.REFUSED, Reason.IMAGE_MISSING, "no /images/\x1b[31ma.img")
    put(TOPICS.agent, birth())
    put(TOPICS.status("vm1"), guest(disk("vda", Phase.UP), refused).model_dump_json().encode())
    assert status.run(wanted=Selection(hosts=("db1",)), guest="vm1", settings=settings, output="table") == 1
    out, _ = capsys.readouterr()
    assert "db1: vm1/vdb is Refused: ImageMissing: no /images/\\x1b[31ma.img\n" in out
    assert f"what to do: {Reason.IMAGE_MISSING.remedy}" in out
    assert "\x1b" not in out


def test_json_is_the_list_of_statuses_and_nothing_else(
    settings: Settings, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = [guest(disk("vda", Phase.UP), name=name) for name in ("vm1", "vm2")]
    put(TOPICS.agent, birth())
    for one in shown:
        put(TOPICS.status(one.guest), one.model_dump_json().encode())
    assert status.run(wanted=None, guest=None, settings=settings, output="json") == 0
    assert json.loads(capsys.readouterr().out) == [one.model_dump(mode="json") for one in shown]
    assert status.run(wanted=None, guest="vm2", settings=settings, output="json") == 0
    assert [one["guest"] for one in json.loads(capsys.readouterr().out)] == ["vm2"]


@pytest.mark.parametrize(
    ("agent", "shown", "code"),
    [
        (birth(), guest(disk("vda", Phase.DOWN)), 0),
        (birth(), guest(disk("vda", Phase.IN_USE, Reason.DEVICE_IN_USE)), 1),
        (birth(), guest(disk("vda", Phase.UP), rejected=Reason.MALFORMED_XML), 1),
        (birth("lost"), guest(disk("vda", Phase.UP)), 1),
        (b"", guest(disk("vda", Phase.UP)), 1),
    ],
    ids=["taken down", "in use", "rejected", "lost", "silent"],
)
def test_the_exit_code_says_whether_there_is_anything_to_do(
    settings: Settings, put: Put, agent: bytes, shown: GuestStatus, code: int
) -> None:
    put(TOPICS.agent, agent)
    put(TOPICS.status("vm1"), shown.model_dump_json().encode())
    assert status.run(wanted=None, guest=None, settings=settings, output="table") == code


@pytest.mark.parametrize(
    ("host", "name", "said"),
    [
        (None, None, "start an agent with `tapster run`"),
        ("db9", None, "host 'db9' has never been in fleet 'lab'"),
        (None, "vm9", "has a guest 'vm9'"),
        ("DB 9", None, "can't be a topic level"),
        (None, "a/b", "can't be a topic level"),
    ],
)
def test_nothing_found_is_said_with_what_to_do(
    settings: Settings, capsys: pytest.CaptureFixture[str], host: str | None, name: str | None, said: str
) -> None:
    assert (
        status.run(wanted=Selection(hosts=(host,)) if host else None, guest=name, settings=settings, output="json") == 1
    )
    out, err = capsys.readouterr()
    assert said in err
    assert out in ("", "[]\n")


def test_a_status_of_another_version_hides_no_other(
    settings: Settings, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    put(TOPICS.agent, birth())
    put(TOPICS.status("vm1"), b'{"from": "the future"}')
    put(TOPICS.status("vm2"), guest(disk("vda", Phase.UP), name="vm2").model_dump_json().encode())
    assert status.run(wanted=None, guest=None, settings=settings, output="table") == 1
    out, err = capsys.readouterr()
    assert "vm2" in out
    assert TOPICS.status("vm1") in err


def test_no_broker_is_said_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = Settings(host="here", fleet="lab", broker=BrokerSettings(port=1))
    assert status.run(wanted=None, guest=None, settings=nowhere, output="table") == 1
    err = capsys.readouterr().err
    assert "cannot reach the broker at 127.0.0.1:1: [Errno 111] Connection refused" in err
    assert "`tapster broker --dev`" in err
