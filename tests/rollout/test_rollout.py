"""Rollouts over a fleet of fakes: waves, limits, rollback, undo, and what is refused."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agent.bus.operator import operator
from agent.bus.topics import Topics
from agent.settings import Settings
from agent.status import Phase
from agent.trust.private_key import PrivateKey
from reconcilers.reason import Reason
from tests.cli_operator.fake_host import Answer, Fake, Put, birth, disk, failing, fake_fleet, guest, up
from tests.cli_operator.test_targets import Tapster
from tests.rollout.conftest import definition


def fleet(count: int = 6, **others: Fake) -> dict[str, Fake]:
    return {f"h{number}": Fake(up, labels={"site": "ams"}) for number in range(1, count + 1)} | others


def told(settings: Settings, host: str = "+") -> dict[str, dict[str, Any]]:
    """What each host is told of vm1."""

    async def look() -> dict[str, dict[str, Any]]:
        async with operator(settings) as op:
            found = await op.retained(op.topics.desired_anywhere("vm1"))
        return {message.topic.split("/")[4]: json.loads(message.payload) for message in found}

    return asyncio.run(look())


def images(settings: Settings) -> dict[str, str]:
    """The image that each host is told to use, or `absent`."""
    documents = told(settings)
    return {
        host: one["domain_xml"].partition("/images/")[2].partition(".img")[0] if "domain_xml" in one else one["state"]
        for host, one in documents.items()
    }


def rollout(tapster: Tapster, *words: str | Path) -> tuple[int, dict[str, Any], str]:
    code, out, err = tapster("rollout", *words, "-o", "json")
    return code, json.loads(out) if out else {}, err


def test_a_change_goes_out_wave_by_wave(settings: Settings, tapster: Tapster, file: Path) -> None:
    order = list[str]()

    def noting(host: str) -> Answer:
        def answer(document: Any, sha256: str) -> Any:
            order.append(host)
            return up(document, sha256)

        return answer

    hosts = {f"h{number}": Fake(noting(f"h{number}")) for number in range(1, 8)}
    with fake_fleet(settings, hosts):
        code, shown, err = rollout(tapster, file, "--all", "--wave", "2")
        assert code == 0, err
        assert (shown["phase"], shown["message"]) == ("done", "7 of 7 hosts done")
        assert order[0] == "h1"
        assert [set(order[1:3]), set(order[3:5]), set(order[5:7])] == [{"h2", "h3"}, {"h4", "h5"}, {"h6", "h7"}]
        assert set(images(settings).values()) == {"new"}
        code, out, _ = tapster("rollout", "history")
        assert code == 0
        assert [word for word in ("done", "--all", "vm1", "7 of 7 hosts done") if word not in out] == []
        code, out, _ = tapster("rollout", "status", shown["id"])
        assert code == 0
        assert [line.split() for line in out.splitlines()[-4:]] == [
            ["1", "(canary)", "1", "1", "0", "0", "0", "0"],
            ["2", "2", "2", "0", "0", "0", "0"],
            ["3", "2", "2", "0", "0", "0", "0"],
            ["4", "2", "2", "0", "0", "0", "0"],
        ]


def test_a_document_that_every_host_would_refuse_stops_at_the_canary(
    settings: Settings, tapster: Tapster, file: Path
) -> None:
    with fake_fleet(settings, {f"h{number}": Fake(failing(Reason.IMAGE_MISSING)) for number in range(1, 101)}):
        code, shown, err = rollout(tapster, file, "--all", "--max-failed", "50%")
        assert code == 1
        assert shown["phase"] == "stopped"
        assert shown["message"] == "in the canary h1 failed, and none may"
        assert [one["host"] for one in shown["outcomes"]] == ["h1"]
        assert images(settings) == {"h1": "new"}
        assert "ImageMissing: because" in err
        assert f"tapster rollout resume {shown['id']}" in err


def test_it_stops_when_more_fail_than_may_and_only_then(settings: Settings, tapster: Tapster, file: Path) -> None:
    bad = Fake(failing(Reason.IMAGE_MISSING))
    with fake_fleet(settings, fleet(8, h3=bad, h5=bad)):
        code, shown, _ = rollout(tapster, file, "--all", "--wave", "1", "--max-failed", "2")
        assert (code, shown["phase"]) == (0, "done")
        assert shown["message"] == "6 of 8 hosts done, h3, h5 failed"
        assert tapster("absent", "vm1", "--all", "-y")[0] == 0
        code, shown, _ = rollout(tapster, file, "--all", "--wave", "1", "--max-failed", "1")
        assert (code, shown["phase"], shown["wave"]) == (1, "stopped", 5)
        assert shown["message"] == "h3, h5 failed, 2 in all, and 1 of 8 hosts may"
        assert images(settings) == {f"h{number}": "new" if number <= 5 else "absent" for number in range(1, 9)}


def test_a_host_that_never_answers_counts_as_failed_when_time_is_up(
    settings: Settings, tapster: Tapster, file: Path, put: Put
) -> None:
    put(Topics("lab", "h9").agent, birth("lost"))
    with fake_fleet(settings, fleet(3, h4=Fake())):
        code, shown, err = rollout(tapster, file, "--all", "--wave", "1", "--max-failed", "2", "--timeout", "5s")
        assert (code, shown["phase"]) == (0, "done")
        assert err.startswith(
            "tapster rollout: h9 is away; a host that has not done it 5 s after its wave began has failed, and 2 of 5"
        )
        why = {one["host"]: one["message"] for one in shown["outcomes"]}
        assert "has not taken the document in yet" in why["h4"]
        assert "host 'h9' is lost; start its agent" in why["h9"]
        code, shown, _ = rollout(tapster, file, "--all", "--wave", "1", "--max-failed", "0", "--timeout", "5s")
        assert (code, shown["message"]) == (1, "h4 failed, 1 in all, and 0 of 5 hosts may")


def test_rollback_brings_back_what_was_before(settings: Settings, tapster: Tapster, file: Path, tmp_path: Path) -> None:
    def choosy(document: Any, sha256: str) -> Any:
        new = "new" in document.get("domain_xml", "")
        return (failing(Reason.IMAGE_MISSING) if new else up)(document, sha256)

    with fake_fleet(settings, fleet(4, h5=Fake(choosy, groups=("web",)), h6=Fake(up))):
        for host in ("h1", "h2", "h5", "h6"):
            assert tapster("push", definition(tmp_path, f"old-{host}"), "--host", host)[0] == 0
        assert tapster("absent", "vm1", "--host", "h2", "--wait")[0] == 0
        code, shown, err = rollout(tapster, file, "--all", "--wave", "3", "--rollback", "--max-failed", "0")
        assert code == 1, "it was rolled back, not done"
        assert (shown["phase"], shown["message"]) == ("rolled-back", "6 of 6 hosts as before")
        assert "stopped: h5 failed, 1 in all, and 0 of 6 hosts may" in err
        assert "the previous documents are being restored" in err
        assert images(settings) == {
            "h1": "old-h1",
            "h2": "absent",
            "h3": "absent",
            "h4": "absent",
            "h5": "old-h5",
            "h6": "old-h6",
        }
        assert told(settings)["h1"]["generation"] == 3
        assert tapster("rollout", "undo", shown["id"])[2].endswith("is rolled back already\n")


def test_a_group_s_document_is_what_was_before_where_the_host_had_none(
    settings: Settings, tapster: Tapster, file: Path, tmp_path: Path
) -> None:
    with fake_fleet(settings, {"a": Fake(up, groups=("web",)), "b": Fake(up)}):
        assert tapster("push", definition(tmp_path, "groups"), "--group", "web", "--wait")[0] == 0
        code, shown, _ = rollout(tapster, file, "--all")
        assert code == 0
        assert tapster("rollout", "undo", shown["id"])[0] == 0
        assert images(settings) == {"a": "groups", "b": "absent"}


def test_undo_leaves_alone_what_somebody_pushed_since(
    settings: Settings, tapster: Tapster, file: Path, tmp_path: Path
) -> None:
    with fake_fleet(settings, fleet(3)):
        assert tapster("push", definition(tmp_path, "old"), "--all", "--wait")[0] == 0
        code, shown, _ = rollout(tapster, file, "--all")
        assert code == 0
        assert tapster("push", definition(tmp_path, "hotfix"), "--host", "h2", "--wait")[0] == 0
        code, out, _ = tapster("rollout", "undo", shown["id"])
        assert code == 0
        assert "2 of 2 hosts as before; h2 left alone: somebody pushed generation 3 of it since" in out
        assert images(settings) == {"h1": "old", "h2": "hotfix", "h3": "old"}
        code, out, _ = tapster("rollout", "status", shown["id"])
        assert code == 0, "it has come to its end"
        assert [line.split() for line in out.splitlines() if line[0].isdigit()] == [
            ["1", "(canary)", "1", "1", "0", "0", "0", "0"],
            ["2", "1", "0", "0", "1", "0", "0"],
            ["3", "1", "1", "0", "0", "0", "0"],
        ]
        assert out.splitlines()[-1] == "h2: overtaken: somebody pushed generation 3 of it since"


def test_what_can_not_be_told_is_not_brought_back(settings: Settings, tapster: Tapster, file: Path, put: Put) -> None:
    """A guest whose document was withdrawn is up, and a rollback must not conclude that it was absent."""
    with fake_fleet(settings, fleet(2)):
        assert tapster("push", file, "--host", "h2", "--wait")[0] == 0
        put(Topics("lab", "h2").desired("vm1"), b"")
        code, _, err = rollout(tapster, file, "--all", "--rollback")
        assert code == 1
        assert "h2: the host shows guest 'vm1' and the bus has no good document of it" in err
        code, shown, _ = rollout(tapster, file, "--all")
        assert code == 0
        code, out, _ = tapster("rollout", "undo", shown["id"])
        assert "h2 left alone: what it was told before could not be read" in out
        assert images(settings) == {"h1": "absent", "h2": "new"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--all", "--host", "h1"), 2, "say in different ways"),
        ((), 2, "--all"),
        (("-l", "site=par"), 1, "matches -l 'site=par'; label 'site' is ams (3)"),
        (("--host", "h1", "--host", "nobody"), 1, "nobody never was in fleet 'lab'"),
        (("--all", "--wave", "11x"), 2, "25 or 10%"),
        (("--all", "--timeout", "soon"), 2, "5m"),
    ],
)
def test_what_can_not_begin_leaves_nothing_behind(
    settings: Settings, tapster: Tapster, file: Path, *, words: tuple[str, ...], code: int, said: str
) -> None:
    with fake_fleet(settings, fleet(3)):
        found, out, err = tapster("rollout", file, *words)
        assert (found, out) == (code, "")
        assert said in err
        assert told(settings) == {}
        assert "no rollout is on the bus" in tapster("rollout", "history")[2]


def test_templates_are_filled_in_and_a_missing_label_is_found_before_anything_is_published(
    settings: Settings, tapster: Tapster, tmp_path: Path
) -> None:
    file = definition(tmp_path, "{site}-{host}")
    with fake_fleet(settings, fleet(2, h3=Fake(up))):
        code, _, err = rollout(tapster, file, "--all", "--template")
        assert code == 1
        assert "host 'h3' has no label 'site'" in err
        assert told(settings) == {}
        assert rollout(tapster, file, "-l", "site", "--template")[0] == 0
        assert images(settings) == {"h1": "ams-h1", "h2": "ams-h2"}


def test_forgotten_rollouts_are_gone_and_unknown_ones_said(settings: Settings, tapster: Tapster, file: Path) -> None:
    with fake_fleet(settings, fleet(2)):
        _, shown, _ = rollout(tapster, file, "--all")
        assert tapster("rollout", "forget", shown["id"])[0] == 0
        assert json.loads(tapster("rollout", "history", "-o", "json")[1]) == []
        for command in ("status", "resume", "abort", "undo", "forget"):
            code, out, err = tapster("rollout", command, shown["id"])
            assert (code, out) == (1, "")
            assert f"there is no rollout {shown['id']!r} on the bus; `tapster rollout history` lists them" in err
        assert images(settings) == {"h1": "new", "h2": "new"}


def test_a_signed_rollout_signs_what_is_in_the_file_and_nothing_that_the_bus_says(
    settings: Settings, tapster: Tapster, file: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    PrivateKey.new().save(key)
    hosts = {name: Fake(lambda _, sha256: guest(disk("vda", Phase.UP), sha256=sha256)) for name in ("a", "b")}
    with fake_fleet(settings, hosts):
        code, _, err = rollout(tapster, file, "--all", "--sign", key, "--rollback")
        assert code == 1
        assert "a key must not sign what the bus says" in err
        code, shown, err = rollout(tapster, file, "--all", "--sign", key)
        assert code == 0, err
        assert all(one["payloadType"] for one in told(settings).values())
        for command in ("undo", "resume"):
            assert "a key must not sign what the bus says" in tapster("rollout", command, shown["id"])[2]
