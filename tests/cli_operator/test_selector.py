"""Selectors, targets and templates: who is meant, and what is filled in for them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.definition import parse_domain
from agent.fleet.selector import SelectorError, parse_selector
from agent.fleet.targets import Selection, TargetError, known, resolve, selection
from agent.fleet.template import TemplateError, fill_in, has_names
from agent.status import AgentState
from tests.cli_operator.fake_host import birth

AMS = {"site": "ams", "rack": "12", "spare": ""}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("site=ams", True),
        ("site==ams", True),
        ("site = ams , rack=12", True),
        ("site=ams,rack=13", False),
        ("site!=ams", False),
        ("tier!=gold", True),
        ("site in (fra, ams)", True),
        ("site in (fra)", False),
        ("site notin (fra,par),rack in (12)", True),
        ("tier notin (gold)", True),
        ("spare", True),
        ("!spare", False),
        ("!tier", True),
        ("spare=", True),
        ("site=", False),
    ],
)
def test_a_selector_is_kubectls(text: str, holds: bool) -> None:
    assert parse_selector(text).matches(AMS) is holds


@pytest.mark.parametrize("text", ["", ",", "site=ams,", "=ams", "site=a b", "site in ams", "site in ()x", "a b", "#"])
def test_what_is_no_selector_is_said_with_what_would_be_one(text: str) -> None:
    with pytest.raises(SelectorError, match=r"site=ams, rack!=12"):
        parse_selector(text)


@given(st.text())
def test_any_text_is_a_selector_or_refused(text: str) -> None:
    with suppress(SelectorError):
        parse_selector(text).matches(AMS)


def births(**labels: dict[str, str]) -> dict[str, AgentState]:
    return {
        host: AgentState.model_validate_json(birth(labels=those, groups=("web",))) for host, those in labels.items()
    }


FLEET = births(a={"site": "ams"}, b={"site": "fra"}, c={"site": "ams"})


def test_who_is_meant() -> None:
    def meant(wanted: Selection | None) -> list[str]:
        assert wanted is not None
        return [target.host for target in resolve(wanted, FLEET, "lab")]

    assert meant(selection((), ["site=ams"], None, False)) == ["a", "c"]
    assert meant(selection((), ["site", "site!=ams"], None, False)) == ["b"]
    assert meant(selection(("c", "x", "c"), (), None, False)) == ["c", "x"]
    assert meant(selection((), (), None, True)) == ["a", "b", "c"]
    assert meant(selection((), (), "web", False)) == meant(selection((), (), "all", False)) == ["a", "b", "c"]
    assert selection((), (), None, False) is None


def test_what_matches_nothing_says_what_there_is() -> None:
    with pytest.raises(
        TargetError, match=r"none of the 3 hosts .* -l 'site=amx'; label 'site' is ams \(2\), fra \(1\)"
    ):
        resolve(Selection(selector=parse_selector("site=amx")), FLEET, "lab")
    with pytest.raises(TargetError, match="no host has a label 'sit'"):
        resolve(Selection(selector=parse_selector("sit=ams")), FLEET, "lab")
    with pytest.raises(TargetError, match="none of the 3 hosts of fleet 'lab' follows group 'db'; they follow web"):
        resolve(Selection(group="db"), FLEET, "lab")
    with pytest.raises(TargetError, match="no host has ever been in fleet 'lab'; start an agent"):
        resolve(Selection(every=True), {}, "lab")
    with pytest.raises(TargetError, match="y never was in fleet 'lab'; `tapster get hosts`"):
        known(resolve(Selection(hosts=("a", "y")), FLEET, "lab"), "lab")


def test_a_mixture_is_refused() -> None:
    with pytest.raises(TargetError, match="--host and --all say in different ways who is meant"):
        selection(["a"], (), None, True)


def xml(source: str) -> str:
    disk = f"<disk type='file'><source file='{source}'/><target dev='vda'/></disk>"
    return f"<domain><name>vm1</name><description>{{no}} template</description><devices>{disk}</devices></domain>"


def source(text: str) -> str | None:
    return parse_domain(text.encode()).disks[0].source


def test_a_template_fills_in_sources_and_nothing_else() -> None:
    filled = fill_in(xml("/i/{site}/{host}-{{x}}.img"), "db1", {"site": "ams", "host": "evil"})
    assert source(filled) == "/i/ams/db1-{x}.img"
    assert "{no} template" in filled
    assert has_names(xml("/i/{host}"))
    assert not has_names(xml("/i/a"))


@pytest.mark.parametrize(
    ("path", "labels", "why"),
    [
        ("/i/{sight}", {}, r"host 'db1' has no label 'sight'; defined for it are \{host\}, \{site\}"),
        ("/i/{}", {}, "has no label ''"),
        ("/i/{host", {}, r"has a lone '\{'; write '\{\{'"),
        ("/i/}", {}, r"has a lone '\}'"),
        ("/i/{site}/a", {"site": ".."}, "is no clean absolute path"),
        ("/i/{site}/a", {"site": "."}, "is no clean absolute path"),
        ("/i/{site}a", {"site": ""}, "can't be part of a file's name"),
        ("/i/{site}a", {"site": "../other-tenant/"}, "can't be part of a file's name"),
        ("{site}/a", {"site": "i"}, "is no clean absolute path"),
        ("/i//{site}", {}, "is no clean absolute path"),
        ("//{site}/a", {}, "is no clean absolute path"),
    ],
)
def test_what_can_not_be_filled_in_is_refused(path: str, labels: dict[str, str], why: str) -> None:
    with pytest.raises(TemplateError, match=why):
        fill_in(xml(path), "db1", {"site": "ams", **labels})
