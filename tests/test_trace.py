"""Trace ids: taken from who pushes, made where there is none, and the same in all that one trigger sets off."""

import pytest

from agent.trace import PROPERTY, new_trace, trace_of, traceparent
from tests.workbench import Bench, bench, loop_disk

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def test_a_valid_parent_gives_its_trace() -> None:
    assert trace_of({PROPERTY: PARENT}) == TRACE
    assert trace_of({PROPERTY: traceparent(TRACE)}) == TRACE
    assert trace_of({PROPERTY: f"01-{TRACE}-00f067aa0ba902b7-01-what-a-later-version-adds"}) == TRACE


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        PARENT.upper(),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{TRACE}-00f067aa0ba902b7",
    ],
)
def test_any_other_parent_gives_a_new_trace(parent: str) -> None:
    given = trace_of({PROPERTY: parent})
    assert given != TRACE
    assert trace_of({PROPERTY: traceparent(given)}) == given


def test_no_two_traces_are_the_same() -> None:
    assert len({new_trace() for _ in range(1000)}) == 1000


def _traces(host: Bench, *kinds: str) -> dict[str, set[str]]:
    return {kind: {event["data"]["trace_id"] for event in host.events(kind)} for kind in kinds}


def test_all_that_a_document_sets_off_carries_its_trace() -> None:
    with bench() as host:
        host.push("vm1", _domain(host), traceparent=PARENT)
        host.until_phase("vm1", "vda", "Up")
        host.until(lambda: any(event["data"]["phase"] == "Up" for event in host.events("tapster.guest.phase")))
        kinds = ("tapster.guest.accepted", "tapster.disk.phase", "tapster.guest.phase")
        told = _traces(host, *kinds)
        assert told["tapster.guest.accepted"] == told["tapster.disk.phase"] == {TRACE}
        assert TRACE in told["tapster.guest.phase"]
        [event] = host.events("tapster.disk.phase")
        assert event["traceparent"].split("-")[1] == TRACE
        assert event["data"]["cause"] == "document"
        assert event["data"]["duration_s"] > 0


def _domain(host: Bench) -> str:
    return f"<domain><name>vm1</name><devices>{loop_disk('vda', host.image('a.img'))}</devices></domain>"
