"""What an operator may push by mistake: it is named in the status and by inspect, and what was good goes on."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.workbench import Bench, domain, loop_disk

GOOD = "good"


@pytest.fixture(scope="module")
def good(host: Bench) -> dict[str, Any]:
    """A guest that was up before all the mistakes."""
    host.push_disks(GOOD, loop_disk("vda", host.image("good.img")))
    return host.until_phase(GOOD, "vda", "Up")


def xml(guest: str, more: str = "") -> str:
    return f"<domain type='kvm'>\n<name>{guest}</name>\n{more}</domain>"


def envelope(guest: str) -> str:
    inner = json.dumps({"guest": guest, "state": "absent"}).encode()
    outer = {"payloadType": "application/vnd.tapster+json", "payload": base64.b64encode(inner).decode()}
    return json.dumps({**outer, "signatures": [{"keyid": "ops", "sig": "AAAA"}]})


def as_json(guest: str, **fields: object) -> str:
    return json.dumps({"guest": guest, "state": "present", "domain_xml": domain(guest)} | fields)


# What is pushed as guest {0}, the reason that it gets, words of the message, and the line that is named.
DOCUMENTS: dict[str, tuple[Callable[[str], bytes | str], str, str, int | None]] = {
    "oversized": (lambda guest: xml(guest, "<!--" + "x" * 300_000 + "-->"), "DocumentTooLarge", "262144", None),
    "unclosed": (lambda guest: xml(guest, "<devices>\n"), "MalformedXml", "devices", 4),
    "no-xml": (lambda _: "garbage", "MalformedXml", "", 1),
    "truncated": (lambda guest: xml(guest)[:-4], "MalformedXml", "", 3),
    "doctype": (
        lambda guest: '<!DOCTYPE domain SYSTEM "file:///etc/passwd">\n' + xml(guest),
        "DoctypeForbidden",
        "DOCTYPE",
        1,
    ),
    "entity": (
        lambda guest: '<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]>\n' + xml(guest, "<title>&x;</title>\n"),
        "DoctypeForbidden",
        "",
        1,
    ),
    "billion-laughs": (
        lambda guest: '<!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>\n' + xml(guest, "<title>&b;</title>\n"),
        "DoctypeForbidden",
        "",
        1,
    ),
    "not-utf8": (lambda guest: xml(guest, "<!-- \n\xe9 -->\n").encode("latin-1"), "NotUtf8", "0xe9", 4),
    "no-domain": (lambda guest: f"<network>\n<name>{guest}</name>\n</network>", "NotADomain", "network", 1),
    "name": (lambda _: xml("another"), "NameMismatch", "another", 2),
    "deep": (lambda guest: xml(guest, "<a>" * 80 + "</a>" * 80), "TooDeep", "64", None),
    "disks": (
        lambda guest: domain(guest, *[f"<disk><target dev='d{n}'/></disk>" for n in range(300)]),
        "TooManyDisks",
        "300",
        None,
    ),
    "json": (lambda _: '{\n"guest": "x",\n"state" "absent"}', "MalformedJson", "column", 3),
    "json-list": (lambda _: "[]", "InvalidDocument", "list", None),
    "json-types": (lambda guest: as_json(guest, generation="5"), "InvalidDocument", "integer", None),
    "json-truth": (lambda guest: as_json(guest, generation=True), "InvalidDocument", "integer", None),
    "json-unknown": (lambda guest: as_json(guest, satte="absent"), "InvalidDocument", "no such field", None),
    "json-state": (lambda guest: as_json(guest, state="gone"), "InvalidDocument", "'present' or 'absent'", None),
    "json-twice": (lambda _: '{"guest": "a", "guest": "b"}', "MalformedJson", "twice", None),
    "json-no-xml": (lambda guest: as_json(guest, domain_xml=None), "InvalidDocument", "missing", None),
    "json-name": (lambda _: as_json("another"), "NameMismatch", "another", None),
    "json-bad-xml": (lambda guest: as_json(guest, domain_xml="<domain>\n<"), "MalformedXml", "", 2),
    "dsse": (envelope, "SignatureInvalid", "signed envelope", None),
}
# These need the topic to be wrong, or are about the bus's own forms, so inspect finds nothing or something else.
ONLY_ON_THE_BUS = {"name", "dsse"} | {name for name in DOCUMENTS if name.startswith("json")}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_a_bad_document_is_turned_away_and_the_last_good_one_stays_in_force(
    host: Bench, good: dict[str, Any], case: str
) -> None:
    make, reason, words, line = DOCUMENTS[case]
    host.push(GOOD, make(GOOD))
    host.until(lambda: host.condition(GOOD, "Accepted").get("reason") == reason)
    accepted = host.condition(GOOD, "Accepted")
    assert accepted["status"] == "False"
    assert words in accepted["message"]
    assert line is None or f"line {line}: " in accepted["message"]
    kept = host.disk(GOOD, "vda")
    assert (kept["phase"], kept["diskseq"]) == ("Up", good["diskseq"])
    host.until(lambda: any(one["data"]["reason"] == reason for one in host.events("tapster.guest.rejected")))
    finding = [one["data"] for one in host.events("tapster.guest.rejected") if one["data"]["reason"] == reason][-1]
    assert line is None or line in [one["line"] for one in finding["findings"]]
    host.push_disks(GOOD, loop_disk("vda", Path(good["source"])))
    host.until(lambda: host.condition(GOOD, "Accepted")["status"] == "True")


def test_a_guest_that_was_only_ever_pushed_wrongly_is_refused(host: Bench) -> None:
    host.push("onlybad", "<domain>")
    status = host.until_guest("onlybad", "Refused")
    assert status["disks"] == []
    host.push_disks("onlybad", loop_disk("vda", host.image("onlybad.img")))
    host.until_guest("onlybad", "Up")


@pytest.mark.parametrize("case", [case for case in DOCUMENTS if case not in ONLY_ON_THE_BUS])
def test_inspect_says_the_same(host: Bench, tmp_path: Path, case: str) -> None:
    make, reason, _, line = DOCUMENTS[case]
    document = make(GOOD)
    found = inspect(tmp_path, document.encode() if isinstance(document, str) else document)
    errors = found[0]["errors"]
    if case != "no-xml":  # a file that does not begin with a bracket may be one of xl's
        assert reason in [error["reason"] for error in errors]
        assert line is None or line in [error["line"] for error in errors]


def test_a_refused_disk_is_named_by_inspect_with_its_line(tmp_path: Path) -> None:
    disk = "\n\n<disk type='file'><source file='/a'/><target dev='vda'/></disk>"
    found = inspect(tmp_path, domain("vm1", disk, disk).encode())
    assert [(error["reason"], error["line"]) for error in found[0]["errors"]] == [
        ("DuplicateTarget", 3),
        ("DuplicateTarget", 5),
    ]


def inspect(folder: Path, document: bytes) -> list[dict[str, Any]]:
    file = folder / "document"
    file.write_bytes(document)
    command = [sys.executable, "-c", "from agent.cli.app import main; main()", "inspect", "--output", "json", str(file)]
    run = subprocess.run(command, check=False, capture_output=True)
    assert run.returncode == 1, run.stderr
    found: list[dict[str, Any]] = json.loads(run.stdout)
    return found


def test_generations_that_are_stale_or_in_conflict_change_nothing(host: Bench) -> None:
    first, second = host.image("gen-a.img"), host.image("gen-b.img")
    host.push("gen", domain("gen", loop_disk("vda", first)), generation="7")
    up = host.until_phase("gen", "vda", "Up")
    for generation, reason, event in (("6", "StaleGeneration", "stale"), ("7", "GenerationConflict", "conflict")):
        host.push("gen", domain("gen", loop_disk("vda", second)), generation=generation)
        host.until(lambda reason=reason: host.condition("gen", "Accepted")["reason"] == reason)  # type: ignore[misc]
        host.until(lambda event=event: host.events(f"tapster.guest.{event}"))  # type: ignore[misc]
        assert host.statuses["gen"]["observed_generation"] == 7
        assert host.disk("gen", "vda")["diskseq"] == up["diskseq"]
        assert host.disk("gen", "vda")["source"] == str(first)
    host.push("gen", domain("gen", loop_disk("vda", second)), generation="8")
    host.until(lambda: host.disk("gen", "vda").get("source") == str(second))
    host.until_guest("gen", "Up")


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        ({"sha256": "0" * 64}, "DigestMismatch"),
        ({"generation": "-1"}, "InvalidDocument"),
        ({"generation": "five"}, "InvalidDocument"),
        ({"generation": str(2**63)}, "InvalidDocument"),
    ],
)
def test_properties_that_are_wrong(host: Bench, properties: dict[str, str], reason: str) -> None:
    guest = f"properties-{reason}"
    host.push(guest, domain(guest), **properties)
    host.until(lambda: host.condition(guest, "Accepted").get("reason") == reason)
    host.push(guest, domain(guest), sha256=sha256(domain(guest).encode()).hexdigest().upper())
    host.until(lambda: host.condition(guest, "Accepted").get("status") == "True")


def test_a_withdrawn_document_leaves_the_disks_up(host: Bench) -> None:
    document = domain("withdrawn", loop_disk("vda", host.image("withdrawn.img")))
    host.push("withdrawn", document)
    up = host.until_phase("withdrawn", "vda", "Up")
    host.push("withdrawn", b"")
    status = host.until_guest("withdrawn", "Withdrawn")
    assert status["disks"][0]["phase"] == "Up"
    assert status["disks"][0]["diskseq"] == up["diskseq"]
    assert host.stable("withdrawn", "vda").is_block_device()
    assert host.condition("withdrawn", "Accepted")["reason"] == "Withdrawn"
    host.push("withdrawn", document)
    assert host.until_guest("withdrawn", "Up")["disks"][0]["diskseq"] == up["diskseq"]


@pytest.mark.parametrize("guest", ["vm 1 (old) & co", "_x", "a:b=c,d@e~f-g.h", "n" * 128])
def test_odd_names_that_are_allowed_get_their_disks(host: Bench, guest: str) -> None:
    image = host.image(f"odd-{sha256(guest.encode()).hexdigest()[:8]}.img")
    host.push_disks(guest, loop_disk("vda", image).replace("&", "&amp;"))
    host.until(lambda: guest in host.statuses)
    host.push(guest, domain(guest.replace("&", "&amp;"), loop_disk("vda", image)))
    host.until_phase(guest, "vda", "Up")
    assert host.stable(guest, "vda").is_block_device()


@pytest.mark.parametrize("guest", ["..", ".hidden", "-dash", "ünïcode", " blank", "n" * 129, "$SYS"])
def test_names_that_can_be_no_folder_get_an_event_and_nothing_else(host: Bench, guest: str) -> None:
    host.push(guest, domain("x", loop_disk("vda", host.image("never.img"))))
    host.until(lambda: guest in [one["data"]["guest"] for one in host.events("tapster.guest.rejected")])
    event = next(one for one in host.events("tapster.guest.rejected") if one["data"]["guest"] == guest)
    assert event["data"]["reason"] == "InvalidName"
    host.resync()
    host.push(guest, b"")
    marker = f"after-{sha256(guest.encode()).hexdigest()[:8]}"
    host.push(marker, domain(marker))
    host.until_guest(marker, "Up")
    assert guest not in host.statuses
    assert not [device for device in host.loops() if "never.img" in (device.backing_path or "")]
