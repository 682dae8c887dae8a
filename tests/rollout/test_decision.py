"""What a rollout does next, as a table; and which hosts get a change together."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.fleet.targets import Target
from agent.rollout.decision import STOPS, Situation, Step, decide
from agent.rollout.waves import ShareError, parse_share, split
from agent.status import AgentState
from tests.cli_operator.fake_host import birth

CALM = Situation(
    last=False,
    canary=False,
    published=True,
    expired=False,
    waiting=0,
    failed=0,
    failed_before=0,
    max_failed=2,
    overtaken=0,
)


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"published": False}, Step.PUBLISH),
        ({"waiting": 3}, Step.WAIT),
        ({}, Step.NEXT),
        ({"last": True}, Step.FINISH),
        ({"last": True, "published": False}, Step.PUBLISH),
        ({"last": True, "waiting": 1}, Step.WAIT),
        # The canary forgives nothing, whatever the limit is.
        ({"canary": True}, Step.NEXT),
        ({"canary": True, "waiting": 1}, Step.WAIT),
        ({"canary": True, "failed": 1}, Step.STOP_CANARY),
        ({"canary": True, "failed": 1, "waiting": 1}, Step.STOP_CANARY),
        ({"canary": True, "waiting": 1, "expired": True}, Step.STOP_CANARY),
        # Other waves forgive as many as may fail in all, and do not wait for the rest when it is one more.
        ({"failed": 2}, Step.NEXT),
        ({"failed": 2, "waiting": 5}, Step.WAIT),
        ({"failed": 3, "waiting": 5}, Step.STOP_LIMIT),
        ({"failed": 1, "failed_before": 2}, Step.STOP_LIMIT),
        ({"failed_before": 3, "published": False}, Step.STOP_LIMIT),
        ({"failed": 1, "max_failed": 0}, Step.STOP_LIMIT),
        # Who is silent when time is up has failed.
        ({"waiting": 2, "expired": True}, Step.NEXT),
        ({"waiting": 2, "expired": True, "last": True}, Step.FINISH),
        ({"waiting": 3, "expired": True}, Step.STOP_LIMIT),
        ({"waiting": 1, "failed": 1, "failed_before": 1, "expired": True}, Step.STOP_LIMIT),
        # Somebody else at the same hosts stops it before anything more is published.
        ({"overtaken": 1}, Step.STOP_OVERTAKEN),
        ({"overtaken": 1, "published": False}, Step.STOP_OVERTAKEN),
        ({"overtaken": 1, "waiting": 5}, Step.STOP_OVERTAKEN),
    ],
)
def test_the_table(changes: dict[str, Any], step: Step) -> None:
    assert decide(replace(CALM, **changes)) is step


counts = st.integers(0, 20)


@given(
    st.builds(
        Situation,
        last=st.booleans(),
        canary=st.booleans(),
        published=st.booleans(),
        expired=st.booleans(),
        waiting=counts,
        failed=counts,
        failed_before=counts,
        max_failed=counts,
        overtaken=st.integers(0, 1),
    )
)
def test_nothing_is_published_beyond_the_limit_and_waiting_comes_to_an_end(now: Situation) -> None:
    step = decide(now)
    if step in {Step.PUBLISH, Step.NEXT}:
        assert now.failed_before + now.failed <= now.max_failed
        assert not now.overtaken
    if step is Step.NEXT:
        assert now.published
        assert not (now.waiting and not now.expired)
    if now.expired:
        assert step is not Step.WAIT
    if now.canary and now.failed:
        assert step in STOPS


ONLINE, LOST = (AgentState.model_validate_json(birth(state)) for state in ("online", "lost"))


def hosts(count: int) -> list[Target]:
    return [Target(f"h{number:03}", ONLINE) for number in range(count)]


def test_the_first_wave_is_the_canary_and_each_other_one_a_share() -> None:
    assert [len(wave) for wave in split(hosts(24), 1, parse_share("10%"))] == [1, 3, 3, 3, 3, 3, 3, 3, 2]
    assert [len(wave) for wave in split(hosts(5), 0, parse_share("2"))] == [2, 2, 1]
    assert [len(wave) for wave in split(hosts(2), 5, parse_share("1%"))] == [2]
    assert [len(wave) for wave in split(hosts(3), 1, parse_share("0%"))] == [1, 1, 1]
    assert split([Target("a", LOST), Target("b", ONLINE)], 1, parse_share("1")) == [["b"], ["a"]]


@given(count=st.integers(1, 300), canary=st.integers(0, 20), percent=st.integers(0, 100))
def test_every_host_is_in_one_wave(count: int, canary: int, percent: int) -> None:
    waves = split(hosts(count), canary, parse_share(f"{percent}%"))
    assert sorted(host for wave in waves for host in wave) == [target.host for target in hosts(count)]
    assert all(waves)


def test_a_limit_is_rounded_down_and_nonsense_is_refused() -> None:
    assert [parse_share("2%").at_most_of(count) for count in (10, 49, 50, 200)] == [0, 0, 1, 4]
    assert parse_share("3").at_most_of(10) == 3
    for text in ("", "-1", "101%", "1.5%", "ten", "%"):
        with pytest.raises(ShareError, match="write for example 25 or 10%"):
            parse_share(text)
