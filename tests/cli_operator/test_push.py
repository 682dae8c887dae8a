"""`tapster push`: what goes on the bus, what does not, and what --wait makes of the host's word."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.bus.operator import operator
from agent.bus.topics import Topics
from agent.cli import push
from agent.fleet.order import Order
from agent.fleet.targets import Selection
from agent.settings import Settings
from agent.status import GuestStatus, Phase
from reconcilers.reason import Reason
from tests.cli_operator.fake_host import Answer, Put, birth, disk, failing, fake_host, guest, up

TOPICS = Topics("lab", "db1")
GOOD = "<disk type='file'><source file='/images/a.img'/><target dev='vda'/></disk>"
BAD = "<disk type='network'><source/><target dev='vdb'/></disk>"


def domain(name: str = "vm1", disks: str = GOOD) -> str:
    return f"<domain>\n<name>{name}</name>\n<devices>\n{disks}\n</devices>\n</domain>\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "vm1.xml"
    file.write_text(domain())
    return file


def go(settings: Settings, *files: Path, output: str = "table", wait: bool = False, **changes: Any) -> int:
    guests = changes.pop("absent", None)
    timeout = changes.pop("timeout", 60.0) if wait else None
    order = Order(**{"wanted": Selection(hosts=("db1",)), "seconds": timeout, **changes})
    if guests:
        return push.take_down([guests], order, agreed=True, settings=settings, output=output)
    return push.run(files, order, settings=settings, output=output)


def on_the_bus(settings: Settings) -> dict[str, Any]:
    async def look() -> dict[str, Any]:
        async with operator(settings) as op:
            found = await op.retained(TOPICS.desired_filter)
        return {message.topic.rpartition("/")[2]: json.loads(message.payload) for message in found}

    return asyncio.run(look())


def test_what_is_published_is_the_documents_json_form(settings: Settings, file: Path) -> None:
    assert go(settings, file) == 0
    present = {"guest": "vm1", "generation": 1, "state": "present", "domain_xml": domain()}
    assert on_the_bus(settings) == {"vm1": present}
    assert go(settings, absent="vm1") == 0
    assert on_the_bus(settings) == {"vm1": {"guest": "vm1", "generation": 2, "state": "absent"}}


def test_generations_count_on_from_the_highest_that_the_bus_knows_of(settings: Settings, put: Put, file: Path) -> None:
    put(TOPICS.status("vm1"), guest(generation=7).model_dump_json().encode())
    put(TOPICS.desired("vm1"), b'{"guest": "vm1", "generation": 3, "state": "absent"}')
    assert go(settings, file) == 0
    assert on_the_bus(settings)["vm1"]["generation"] == 8
    assert go(settings, file) == 0
    assert on_the_bus(settings)["vm1"]["generation"] == 9
    assert go(settings, file, generation=20) == 0
    assert on_the_bus(settings)["vm1"]["generation"] == 20


def test_a_generation_that_hosts_would_ignore_is_not_sent(
    settings: Settings, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(settings, file, generation=5) == 0
    assert go(settings, file, generation=4) == 1
    assert "generation 4 is below 5" in capsys.readouterr().err
    assert on_the_bus(settings)["vm1"]["generation"] == 5


def test_a_file_of_several_domains_is_several_documents(settings: Settings, tmp_path: Path) -> None:
    both = tmp_path / "both.xml"
    both.write_text(domain("vm1") + domain("vm2"))
    assert go(settings, both) == 0
    found = on_the_bus(settings)
    assert found.keys() == {"vm1", "vm2"}
    assert "<name>vm2</name>" in found["vm2"]["domain_xml"]
    assert "vm1" not in found["vm2"]["domain_xml"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<domain><name>vm1</name>", "bad.xml:1: MalformedXml: "),
        ("<network/>", "bad.xml:1: NotADomain: "),
        (domain(disks=BAD), "every disk would be refused"),
        ("name = 'vm1'\ndisk = ['file:/images/a.img,xvda,w', 'nbd:h:1,xvdb,w']\n", "not every disk can be served"),
        (domain() + domain(), "'vm1' is defined twice"),
        (domain(disks=GOOD + " " * 300_000), "DocumentTooLarge"),
        (domain(disks=GOOD + '"' * 200_000), "limits.document_bytes"),
    ],
    ids=["malformed", "no domain", "all refused", "xl", "twice", "too large", "too large as JSON"],
)
def test_what_every_host_would_refuse_is_not_sent(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    bad = tmp_path / "bad.xml"
    bad.write_text(text)
    other = tmp_path / "other.xml"
    other.write_text(domain("other"))
    assert go(settings, other, bad) == 1
    assert said in capsys.readouterr().err
    assert on_the_bus(settings) == {}, "not even the good one"


def test_a_guest_with_some_good_disks_is_sent_with_a_warning(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "vm1.xml"
    file.write_text(domain(disks=f"{GOOD}\n{BAD}"))
    assert go(settings, file) == 0
    assert "vm1.xml:5: UnsupportedSource" in capsys.readouterr().err
    assert "vm1" in on_the_bus(settings)


def test_an_absent_or_unknown_host_is_said_and_the_document_waits(
    settings: Settings, put: Put, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(settings, file) == 0
    assert "host 'db1' is unknown to the fleet" in capsys.readouterr().err
    put(TOPICS.agent, birth("lost"))
    assert go(settings, file, wait=True, timeout=0.5) == 1
    err = capsys.readouterr().err
    assert "timeout: host 'db1' is lost; start its agent" in err


def still_up(document: Mapping[str, Any], sha256: str) -> GuestStatus:
    return guest(disk("vda", Phase.UP), generation=document["generation"], sha256=sha256)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (up, ("done", "")),
        (failing(Reason.IMAGE_MISSING), ("failed", "ImageMissing: because")),
        (failing(Reason.SERVER_FAILED), ("timeout", "ServerFailed: because")),
        (lambda *_: guest(rejected=Reason.TOO_DEEP, generation=None), ("rejected", "TooDeep: it is as it is")),
        (lambda *_: guest(generation=99), ("overtaken", "generation 99")),
        (lambda *_: None, ("timeout", "has not taken the document in yet")),
    ],
    ids=["up", "final failure", "passing failure", "rejected", "overtaken", "silent"],
)
def test_wait_ends_with_what_became_of_the_document(
    settings: Settings, file: Path, capsys: pytest.CaptureFixture[str], answer: Answer, expected: tuple[str, str]
) -> None:
    outcome, said = expected
    with fake_host(settings, answer):
        patience = 5.0 if outcome == "timeout" else 60.0
        assert go(settings, file, wait=True, timeout=patience, output="json") == (0 if outcome == "done" else 1)
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["outcome"] == outcome
    assert said in shown["message"]


def test_an_older_rejection_is_not_taken_for_ours(settings: Settings, put: Put, file: Path) -> None:
    put(TOPICS.status("vm1"), guest(rejected=Reason.TOO_DEEP).model_dump_json().encode())
    with fake_host(settings, up):
        assert go(settings, file, wait=True) == 0


def test_a_document_that_is_in_force_already_needs_no_wait(settings: Settings, file: Path) -> None:
    with fake_host(settings, up):
        assert go(settings, file, wait=True) == 0
    assert go(settings, file, wait=True, generation=1, timeout=60.0) == 0


def test_absent_waits_until_every_disk_is_down(settings: Settings) -> None:
    with fake_host(settings, still_up):
        assert go(settings, absent="vm1", wait=True, timeout=1.0) == 1
    with fake_host(settings, up):
        assert go(settings, absent="vm1", wait=True) == 0


def test_a_missing_file_and_a_bad_name_are_said(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(settings, Path("/nonexistent.xml")) == 1
    assert "/nonexistent.xml: can't be read: No such file or directory" in capsys.readouterr().err
    assert go(settings, absent="a/b") == 1
    assert "can't be a topic level" in capsys.readouterr().err
