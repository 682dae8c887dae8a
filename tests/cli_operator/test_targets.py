"""Pushing to many, and seeing before: `push -l`, `--group`, `absent`, `diff` and `plan` over a fleet of fakes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent.cli import options
from agent.cli.app import app
from agent.document import GENERATION_MAX
from agent.preview import GuestPlan, PlannedStep
from agent.settings import Settings
from reconcilers.reason import Reason
from tests.cli_operator.fake_host import Fake, Put, birth, failing, fake_fleet, up

DISK = "<disk type='file'><source file='{}'/><target dev='vda'/></disk>"
XML = f"<domain><name>vm1</name><devices>{DISK}</devices></domain>"

OVERRIDDEN = "the host has a document of its own for the guest, which wins over a group's"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vm1.xml"
    path.write_text(XML.format("/images/a.img"))
    return path


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.xml"
    path.write_text(XML.format("/images/{site}/{host}.img"))
    return path


class Tapster:
    """Calls the command line in this process."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._config = folder / "tapster.toml"
        self._config.write_text(f'host = "here"\nfleet = "lab"\nbroker.port = {settings.broker.port}\n')

    def __call__(self, *words: str | Path, answer: str = "") -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [*map(str, words), "--config", str(self._config)], input=answer)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def tapster(settings: Settings, tmp_path: Path) -> Tapster:
    return Tapster(settings, tmp_path)


def fleet(count: int = 4, **changes: Any) -> dict[str, Fake]:
    return {
        f"h{number}": Fake(up, labels={"site": "ams" if number % 2 else "fra"}, **changes)
        for number in range(1, count + 1)
    }


def test_a_push_by_label_reaches_those_that_are_meant(settings: Settings, tapster: Tapster, file: Path) -> None:
    with fake_fleet(settings, fleet()):
        code, out, _ = tapster("push", file, "-l", "site=ams", "--wait", "-o", "json")
        assert code == 0
        assert {one["host"]: one["outcome"] for one in json.loads(out)} == {"h1": "done", "h3": "done"}
        code, out, _ = tapster("push", file, "--all", "--wait")
        assert code == 0
        assert out.splitlines() == [
            f"h{number}: vm1 present, generation {number % 2 + 1}: done" for number in range(1, 5)
        ]


def test_a_selector_that_matches_nothing_publishes_nothing(settings: Settings, tapster: Tapster, file: Path) -> None:
    with fake_fleet(settings, fleet()):
        for command in ("push", "plan", "diff"):
            code, out, err = tapster(command, file, "-l", "site=par")
            assert (code, out) == (2 if command == "diff" else 1, "")
            assert "none of the 4 hosts of fleet 'lab' matches -l 'site=par'; label 'site' is ams (2), fra (2)" in err
        assert tapster("get", "guests", "-o", "json")[1] == "[]\n"
        assert tapster("push", file, "-l", "site=")[0] == 1
        assert tapster("push", file, "-l", "a b")[0] == 2
        assert tapster("push", file, "--all", "--host", "h1")[0] == 2


def test_many_documents_are_summed_up(settings: Settings, tapster: Tapster, file: Path) -> None:
    hosts = fleet(30) | {"h31": Fake(failing(Reason.IMAGE_MISSING))}
    with fake_fleet(settings, hosts):
        code, out, err = tapster("push", file, "--all", "--wait")
    assert code == 1
    assert out == "31 documents: 30 done, 1 failed\n"
    assert "h31: vm1/vda is Failed: ImageMissing: because" in err


def test_a_group_has_one_standing_document_and_hosts_own_ones_win(
    settings: Settings, tapster: Tapster, file: Path
) -> None:
    with fake_fleet(settings, {"a": Fake(up, groups=("web",)), "b": Fake(up, groups=("web",)), "c": Fake(up)}):
        assert tapster("push", file, "--host", "b")[0] == 0
        code, out, _ = tapster("push", file, "--group", "web", "--wait")
        assert code == 0
        assert out.splitlines() == [
            "a (group web): vm1 present, generation 1: done",
            f"b (group web): vm1 present, generation 1: overridden: {OVERRIDDEN}",
        ]
        code, out, err = tapster("push", file, "--group", "later")
        assert (code, out) == (0, "group later: vm1 present, generation 1: published\n")
        assert "no host follows group 'later' yet" in err


def test_a_template_is_filled_in_for_each_host_only_if_asked_for(
    settings: Settings, tapster: Tapster, template: Path, put: Put
) -> None:
    with fake_fleet(settings, fleet(2)):
        assert tapster("push", template, "--all", "--template")[0] == 0
        code, out, _ = tapster("diff", template, "--all", "--template", "-o", "json")
        assert (code, {one["differs"] for one in json.loads(out)}) == (0, {False})
        code, out, err = tapster("diff", template, "--all")
        assert code == 1
        assert '-      <source file="/images/ams/h1.img"/>' in out
        assert '+      <source file="/images/{site}/{host}.img"/>' in out
        assert "2 of 2 documents would change" in err
        assert (
            "a source has braces, taken as they are without --template" in tapster("push", template, "--host", "h1")[2]
        )
        put("tapster/v1/lab/hosts/h9/agent", birth())
        code, _, err = tapster("push", template, "--all", "--template")
        assert code == 1
        assert "host 'h9' has no label 'site'; defined for it are {host}; nothing was published" in err
        assert "a group has one standing document" in tapster("push", template, "--group", "g", "--template")[2]


def test_absent_goes_to_those_that_have_the_guest_and_asks_first(
    settings: Settings, tapster: Tapster, file: Path
) -> None:
    with fake_fleet(settings, fleet()):
        assert tapster("push", file, "-l", "site=ams", "--wait")[0] == 0
        code, out, err = tapster("absent", "vm1", "--all", answer="n\n")
        assert (code, out) == (1, "")
        assert "take the disks of vm1 down on 2 hosts (h1, h3)? [y/N]" in err
        assert tapster("absent", "vm1", "--all", "--yes", "--wait")[1].splitlines() == [
            "h1: vm1 absent, generation 2: done",
            "h3: vm1 absent, generation 2: done",
        ]
        assert "none of the 4 hosts that --all means has guest 'vm2'" in tapster("absent", "vm2", "--all", "-y")[2]
        code, _, err = tapster("absent", "vm1", "vm2", "--host", "h1")
        assert code == 0
        assert err == (
            "tapster absent: nothing on the bus says that 'h1' has guest 'vm2'; if its name is another, "
            "`tapster get guests` shows it\n"
        )
        assert tapster("push", "--absent", "vm1", "--all")[0] == 1
        assert tapster("push", "--absent", "vm1", "--all", "--yes")[0] == 0
    said = tapster("absent", "vm1", "--host", "h9")[2]
    assert said == "tapster absent: host 'h9' is unknown to the fleet; documents wait there on the bus\n"


def answer(host: str, *steps: tuple[str, str, Reason | None]) -> bytes:
    planned = [PlannedStep(target=target, step=step, reason=why, message=None) for target, step, why in steps]
    return GuestPlan(host=host, guest="vm1", steps=tuple(planned)).model_dump_json().encode()


def planner(host: str, *steps: tuple[str, str, Reason | None]) -> Fake:
    return Fake(up, plan=lambda _: answer(host, *steps))


def test_a_plan_over_the_fleet_streams_answers_and_sums_them_up(
    settings: Settings, tapster: Tapster, file: Path, put: Put
) -> None:
    hosts: Mapping[str, Fake] = {
        "h1": planner("h1", ("vda", "attach", None), ("vdb", "attach", None)),
        "h2": planner("h2", ("vda", "replace", None), ("vdb", "refuse", Reason.IMAGE_MISSING)),
        "h3": planner("h3", ("vda", "refuse", Reason.IMAGE_MISSING)),
        "h4": Fake(up),
        "h5": Fake(up, plan=lambda _: b"from the future"),
    }
    put("tapster/v1/lab/hosts/h6/agent", birth("lost"))
    with fake_fleet(settings, hosts):
        code, out, _ = tapster("plan", file, "--all", "--timeout", "5")
        assert code == 1
        lines: Sequence[str] = out.splitlines()
        assert set(lines[:3]) == {
            "h1: vm1: attach vda vdb",
            "h2: vm1: replace vda, refused vdb",
            "h3: vm1: refused vda",
        }
        assert lines[3:] == [
            "3 of 6 hosts answered: attach 2, replace 1, refused 2, silent 2, unreadable 1",
            f"  refused on h2, h3: ImageMissing: {Reason.IMAGE_MISSING.meaning}",
            f"    what to do: {Reason.IMAGE_MISSING.remedy}",
            "  silent: h6: not asked, lost",
            "  silent: h4: did not answer in time: look at the agent's log there",
            "  unreadable: h5: from the future",
        ]
        code, out, err = tapster("plan", file, "--all", "--timeout", "5", "-o", "json")
        assert code == 1
        plans = {plan["host"]: plan for plan in json.loads(out)}
        assert {host: [error["message"] for error in plan["errors"]] for host, plan in plans.items()} == {
            "h1": [],
            "h2": [],
            "h3": [],
            "h4": ["did not answer in time: look at the agent's log there"],
            "h5": ["an answer that this version can't read: from the future"],
            "h6": ["not asked, lost"],
        }
        assert "silent: h6: not asked, lost" in err
        assert "h7 never was in fleet 'lab'" in tapster("plan", file, "--host", "h7")[2]
        code, out, _ = tapster("plan", file, "--host", "h1")
        assert code == 0
        assert out.splitlines()[0].split() == ["GUEST", "TARGET", "STEP", "WHY"]


def test_a_generation_that_no_host_would_take_is_not_published(tapster: Tapster, file: Path) -> None:
    for command in (("push", file), ("absent", "vm1"), ("sign", file, "--key", "k", "--host", "h1")):
        code, _, err = tapster(*command, "--generation", str(GENERATION_MAX + 1))
        assert code == 2
        assert "--generation" in err
    assert options.GENERATION_MAX == GENERATION_MAX


def test_brackets_in_a_host_s_words_are_shown_as_they_are(settings: Settings, tapster: Tapster, file: Path) -> None:
    why = "there is no /images/ro[/x]ot[bold].raw"
    step = PlannedStep(target="vda", step="refuse", reason=Reason.IMAGE_MISSING, message=why)
    plan = GuestPlan(host="h1", guest="vm1", steps=(step,)).model_dump_json().encode()
    with fake_fleet(settings, {"h1": Fake(up, plan=lambda _: plan)}):
        assert why in tapster("plan", file, "--host", "h1")[1]


def test_a_plan_s_summary_stays_short_where_each_host_has_its_own_sentence(
    settings: Settings, tapster: Tapster, file: Path
) -> None:
    def lacking(host: str) -> Fake:
        step = PlannedStep(target="vda", step="refuse", reason=Reason.IMAGE_MISSING, message=f"no {host}.img")
        plan = GuestPlan(host=host, guest="vm1", steps=(step,)).model_dump_json().encode()
        return Fake(up, plan=lambda _: plan)

    with fake_fleet(settings, {host: lacking(host) for host in (f"h{number:02}" for number in range(20))}):
        _, out, _ = tapster("plan", file, "--all")
    assert out.splitlines()[20:] == [
        "20 of 20 hosts answered: refused 20",
        *(f"  refused on h0{number}: ImageMissing: no h0{number}.img" for number in range(6)),
        "  refused on 14 more hosts: ImageMissing: h06, h07, h08, h09, h10, h11 and 8 more",
        f"    what to do: {Reason.IMAGE_MISSING.remedy}",
    ]


def test_braces_without_a_template_are_spoken_of(settings: Settings, tapster: Tapster, template: Path) -> None:
    with fake_fleet(settings, {"h1": planner("h1", ("vda", "attach", None))}):
        for command in (("plan",), ("push",), ("rollout",)):
            err = tapster(*command, template, "--host", "h1")[2]
            words = "guest 'vm1': a source has braces, taken as they are without --template"
            assert err.startswith(f"tapster {command[0]}: {words}\n"), command


def test_hosts_are_told_to_look_anew_and_who_does_not_is_said(settings: Settings, tapster: Tapster, put: Put) -> None:
    hosts: Mapping[str, Fake] = {
        "h1": Fake(resync=lambda _: b'{"host": "h1", "resync": "started"}'),
        "h2": Fake(resync=lambda _: b'{"error": "the host could not be looked over: no room"}'),
        "h3": Fake(),
    }
    put("tapster/v1/lab/hosts/h6/agent", birth("lost"))
    with fake_fleet(settings, hosts):
        code, out, err = tapster("resync", "--all", "--timeout", "5")
        assert code == 1
        assert set(out.splitlines()[:2]) == {"h1: looks anew", "h2: the host could not be looked over: no room"}
        assert out.splitlines()[2:] == ["1 of 4 hosts look anew"]
        assert err.splitlines() == [
            "tapster resync: silent: h6: not asked, lost",
            "tapster resync: silent: h3: did not answer in time: look at the agent's log there",
        ]
        code, out, err = tapster("resync", "--host", "h1", "-o", "json")
        assert (code, json.loads(out), err) == (0, [{"host": "h1", "error": None}], "")
        code, out, err = tapster("resync", "--host", "h3", "--host", "h6", "--timeout", "1", "-o", "json")
        assert code == 1
        assert json.loads(out) == [
            {"host": "h3", "error": "did not answer in time: look at the agent's log there"},
            {"host": "h6", "error": "not asked, lost"},
        ]
        assert "h7 never was in fleet 'lab'" in tapster("resync", "--host", "h7")[2]
        assert tapster("resync", "--all", "--host", "h1")[0] == 2
