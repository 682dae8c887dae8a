"""`tapster get`, `describe` and `events`: what there is, all about one thing, and what happens."""

import json
import re
import signal
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.bus.topics import Topics
from agent.events import EventSource, EventType, PhaseChange
from agent.settings import Settings
from agent.status import HostStatus, Phase, now
from reconcilers.reason import Reason
from tests.broker import Broker
from tests.cli_operator.fake_host import CAPABILITIES, Put, birth, disk, guest
from tests.cli_operator.test_targets import XML, Tapster
from tests.cli_operator.test_watch_and_broker import tapster as process
from tests.cli_operator.test_watch_and_broker import until
from tests.workbench import AGENT

DB1, DB2 = Topics("lab", "db1"), Topics("lab", "db2")


@pytest.fixture
def tapster(settings: Settings, tmp_path: Path) -> Tapster:
    return Tapster(settings, tmp_path)


@pytest.fixture
def lab(put: Put) -> None:
    put(DB1.agent, birth(labels={"site": "ams"}, groups=("web",)))
    put(DB2.agent, birth("lost", labels={"site": "fra"}))
    glance = HostStatus(
        host="db1",
        disks_by_phase={Phase.UP: 3, Phase.REFUSED: 1},
        guests=2,
        capabilities=CAPABILITIES,
        last_sync=None,
        conditions=(),
    )
    put(DB1.host_status, glance.model_dump_json().encode())
    put(DB1.desired("vm1"), b'{"guest": "vm1", "generation": 4, "state": "present", "domain_xml": "<domain/>"}')
    up, refused = disk("vda", Phase.UP), disk("vdb", Phase.REFUSED, Reason.IMAGE_MISSING, "no \x1b[31m image")
    put(DB1.status("vm1"), guest(up, refused, generation=3).model_dump_json().encode())
    put(DB2.status("vm2"), guest(up, name="vm2", host="db2").model_dump_json().encode())


@pytest.mark.usefixtures("lab")
def test_tables(tapster: Tapster) -> None:
    def rows(*words: str) -> list[list[str]]:
        code, out, _ = tapster("get", *words)
        assert code == 0
        return [line.split() for line in out.splitlines()]

    assert rows("hosts")[1:] == [
        ["db1", "online", "3/4", "2", "1.2.3", "site=ams"],
        ["db2", "lost", "-", "-", "1.2.3", "site=fra"],
    ]
    assert rows("host", "-o", "wide", "db1")[1][6:] == ["web", "loop", "raw", "6.1"]
    assert rows("guests")[1:] == [
        ["db1", "vm1", "Refused", "1/2", "3", "ImageMissing"],
        ["db2", "vm2", "Up", "1/1", "1", "-"],
    ]
    assert [row[2] for row in rows("disks", "vm1")[1:]] == ["vda", "vdb"]
    assert [row[1] for row in rows("disks", "-l", "site=fra")[1:]] == ["vm2"]
    assert [row[1] for row in rows("guests", "--host", "db2")[1:]] == ["vm2"]


@pytest.mark.usefixtures("lab")
def test_programs_get_lists(tapster: Tapster) -> None:
    for output, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        things: dict[str, list[dict[str, Any]]] = {
            kind: read(tapster("get", kind, "-o", output)[1]) for kind in ("hosts", "guests", "disks")
        }
        db1, _ = things["hosts"]
        assert (db1["host"], db1["state"], db1["labels"]) == ("db1", "online", {"site": "ams"})
        assert [(one["host"], one["guest"]) for one in things["guests"]] == [("db1", "vm1"), ("db2", "vm2")]
        assert [one["target"] for one in things["disks"]] == ["vda", "vdb", "vda"]


@pytest.mark.parametrize(
    ("words", "shown", "said"),
    [
        (("get", "hosts", "db1", "db9"), "db1", "there is no host 'db9' here"),
        (("get", "guests", "vm1", "vm9"), "vm1", "there is no guest 'vm9' here"),
        (("get", "disks", "vm1", "vm8", "vm9"), "vda", "there is no guest 'vm8', 'vm9' here"),
        (("get", "disks", "--host", "db1", "--host", "db9"), "vda", "host 'db9' has never been in fleet 'lab'"),
        (("status", "--host", "db1", "--host", "db9", "vm1"), "vda", "host 'db9' has never been in fleet 'lab'"),
        (("describe", "guest", "vm1", "--host", "db1", "--host", "db9"), "vda", "host 'db9' has never been"),
    ],
)
@pytest.mark.usefixtures("lab")
def test_what_is_only_partly_there_is_shown_and_the_rest_is_said(
    tapster: Tapster, words: tuple[str, ...], shown: str, said: str
) -> None:
    code, out, err = tapster(*words)
    assert code == 1
    assert shown in out
    assert said in err


@pytest.mark.usefixtures("lab")
def test_what_is_not_there_and_what_is_no_kind_is_said(tapster: Tapster) -> None:
    code, out, err = tapster("get", "guests", "vm9", "-o", "json")
    assert (code, out) == (1, "[]\n")
    assert "has a guest 'vm9'" in err
    assert "there is no host 'db9' here" in tapster("get", "hosts", "db9")[2]
    assert tapster("get", "pods")[0] == 2
    assert "is meant by -l 'site=par'" in tapster("get", "hosts", "-l", "site=par")[2]


@pytest.mark.usefixtures("lab")
def test_what_another_version_says_is_told_and_hides_no_other(tapster: Tapster, put: Put) -> None:
    put(DB2.host_status, b'{"from": "the future"}')
    code, out, err = tapster("get", "hosts", "-o", "json")
    assert (code, len(json.loads(out))) == (1, 2)
    assert f"{DB2.host_status} can't be read by this version" in err


@pytest.mark.usefixtures("lab")
def test_describe_says_all_about_one_thing(tapster: Tapster) -> None:
    code, out, _ = tapster("describe", "guest", "vm1")
    assert code == 0
    assert "Document:      the host's own, present, generation 4; the host does not show it yet" in out
    assert "Observed:      generation 3, sha256 0" in out
    assert "db1: vm1/vdb is Refused: ImageMissing: no \\x1b[31m image" in out
    assert f"what to do: {Reason.IMAGE_MISSING.remedy}" in out
    code, out, _ = tapster("describe", "host", "db1")
    assert code == 0
    for words in ("State:         online", "Labels:        site=ams", "Groups:        web, all", "1 Refused, 3 Up"):
        assert words in out
    assert "never been" in tapster("describe", "host", "db9")[2]
    assert tapster("describe", "guest", "vm9")[0] == 1


@pytest.mark.usefixtures("lab")
def test_a_clock_that_is_ahead_is_said_and_makes_no_age(tapster: Tapster, put: Put) -> None:
    assert "ahead" not in "".join(str(tapster(*words)) for words in (("get", "disks"), ("describe", "host", "db2")))
    later = now() + timedelta(hours=2, minutes=5)
    told = guest(disk("vda", Phase.UP).model_copy(update={"since": later}), name="vm2", host="db2")
    put(DB2.status("vm2"), told.model_dump_json().encode())
    code, out, err = tapster("get", "disks", "vm2", "-o", "wide")
    assert code == 0
    assert "2h ahead" in out
    assert err.startswith("tapster get: db2: the clock is 7")
    assert "s ahead of this machine's, or this one's is behind" in err
    _, out, err = tapster("status", "vm2")
    assert "2h ahead" in out
    assert err.startswith("tapster status: db2: the clock is 7")
    assert tapster("status", "vm1")[2] == ""
    _, out, _ = tapster("describe", "host", "db2")
    assert re.search(r"^Clock: +7\d\d\d s ahead of this machine's", out, re.MULTILINE)
    assert "vda: Up since a moment 2h ahead" in tapster("describe", "guest", "vm2")[1]


def happened(number: int, phase: Phase) -> bytes:
    source = EventSource(host="db1", fleet="lab", session=f"s{number}")
    change = {"guest": "vm1", "previous": None, "reason": "AsDesired", "message": "m", "cause": "start"}
    data = PhaseChange.model_validate({**change, "phase": phase, "duration_s": 0.5})
    return source.event(EventType.GUEST_PHASE, "vm1", data).payload


@pytest.mark.usefixtures("lab")
def test_events_are_followed_and_filtered(settings: Settings, tapster: Tapster, put: Put, tmp_path: Path) -> None:
    code, out, err = tapster("events")
    assert (code, out) == (2, "")
    assert "say -f to follow them" in err
    config, log = str(tmp_path / "tapster.toml"), tmp_path / "events"
    words = ("events", "-f", "-l", "site=ams", "--phase", "failed", "--type", "guest.*", "-n", "2", "--config", config)
    with process(*words, log=log) as following:
        number = 0

        def seen() -> bool:
            nonlocal number
            number += 1
            put(DB2.event("guest"), happened(number, Phase.FAILED))
            put(DB1.event("guest"), happened(number, Phase.UP))
            put(DB1.event("guest"), happened(number, Phase.FAILED))
            return following.poll() is not None

        until(seen, 60)
        assert following.returncode == 0
    lines = log.read_text().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.split(maxsplit=1)[1] == (
            "db1 guest.phase vm1: new → Failed, AsDesired: m [start, 0.500 s after its cause]"
        )


def test_an_event_that_never_comes_is_not_waited_for(tapster: Tapster) -> None:
    for option, word, known in (("--type", "nosuch", "disk.phase"), ("--phase", "broken", "Failed")):
        code, out, err = tapster("events", "-f", option, word)
        assert (code, out) == (2, "")
        assert f"'{word}' is none of" in err
        assert known in err


@pytest.mark.usefixtures("lab")
def test_get_watches(tapster: Tapster, put: Put, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ("get", "guests", "vm1", "-w", "-o", "json", "--config", str(tmp_path / "tapster.toml"))
    with process(*words, log=log) as watching:
        until(lambda: len(log.read_text().splitlines()) == 1, 60)
        put(DB1.status("vm1"), guest(disk("vda", Phase.UP)).model_dump_json().encode())
        until(lambda: len(log.read_text().splitlines()) == 2, 60)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 0
    assert [json.loads(line)["phase"] for line in log.read_text().splitlines()] == ["Refused", "Up"]


@pytest.mark.usefixtures("lab")
def test_a_guest_is_rendered_as_its_host_is_told_of_it_also_by_a_group(tapster: Tapster, put: Put) -> None:
    put(DB1.group_desired("web", "ours"), XML.replace("vm1", "ours").format("/images/a.img").encode())
    words = ("render", "--to", "xl", "--guest", "ours", "--host")
    code, out, err = tapster(*words, "db1")
    assert (code, err) == (0, "")
    assert "vdev=vda" in out
    code, out, err = tapster(*words, "db2")
    assert (code, out) == (1, "")
    assert "there is no document on the bus that the host would take" in err


@pytest.mark.usefixtures("lab", "tapster")
@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_where_there_is_no_room_for_the_output_it_is_said(tmp_path: Path, output: str) -> None:
    words = ("get", "disks", "-o", output, "--config", str(tmp_path / "tapster.toml"))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*AGENT, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    why = "not all could be written: No space left on device; write it to where there is room"
    assert (done.returncode, done.stderr) == (1, f"tapster: {why}\n")


def test_who_is_interrupted_has_not_seen_all(tapster: Tapster, own_broker: Broker, tmp_path: Path) -> None:
    log = tmp_path / "log"
    own_broker.signal(signal.SIGSTOP)
    try:
        with process("get", "hosts", "--config", str(tmp_path / "tapster.toml"), log=log) as getting:
            until(lambda: connected(own_broker.port))
            getting.send_signal(signal.SIGINT)
            assert getting.wait(60) == 130
    finally:
        own_broker.signal(signal.SIGCONT)
    assert log.read_text() == ""


def connected(port: int) -> bool:
    """Whether anybody has a connection to this port of loopback, which the kernel makes without the program."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[2] == f"0100007F:{port:04X}" and line.split()[3] == "01" for line in lines)
