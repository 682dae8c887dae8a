"""Topics: what is built parses back, and nothing else does."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bus.topics import (
    CLIENT,
    NAME,
    AgentTopic,
    CommandTopic,
    DesiredTopic,
    EventTopic,
    FleetTopics,
    HostStatusTopic,
    OperatorTopic,
    RolloutPart,
    RolloutTopic,
    Scope,
    StatusTopic,
    SyncTopic,
    TopicError,
    Topics,
)
from reconcilers.spec import GUEST_NAME

names = st.from_regex(NAME, fullmatch=True)
guests = st.from_regex(GUEST_NAME, fullmatch=True)


def test_the_topics_are_those_of_the_contract() -> None:
    topics = Topics("lab", "db1.example")
    assert topics.agent == "tapster/v1/lab/hosts/db1.example/agent"
    assert topics.host_status == "tapster/v1/lab/hosts/db1.example/status/host"
    assert topics.desired("vm1") == "tapster/v1/lab/hosts/db1.example/desired/guests/vm1"
    assert topics.status("vm1") == "tapster/v1/lab/hosts/db1.example/status/guests/vm1"
    assert topics.event("disk") == "tapster/v1/lab/hosts/db1.example/events/disk"
    assert topics.command("plan") == "tapster/v1/lab/hosts/db1.example/cmd/plan"
    assert topics.sync == "tapster/v1/lab/hosts/db1.example/sync"
    assert topics.group_desired("all", "vm1") == "tapster/v1/lab/groups/all/desired/guests/vm1"


@given(fleet=names, host=names, group=names, guest=guests)
def test_what_is_built_parses_back(fleet: str, host: str, group: str, guest: str) -> None:
    topics = Topics(fleet, host)
    expected = {
        topics.agent: AgentTopic(host),
        topics.host_status: HostStatusTopic(host),
        topics.sync: SyncTopic(host),
        topics.desired(guest): DesiredTopic(Scope("host", host), guest),
        topics.group_desired(group, guest): DesiredTopic(Scope("group", group), guest),
        topics.status(guest): StatusTopic(host, guest),
        topics.event("disk"): EventTopic(host, "disk"),
        topics.command("resync"): CommandTopic(host, "resync"),
    }
    assert {topic: FleetTopics(fleet).parse(topic) for topic in expected} == expected


@given(client=st.from_regex(CLIENT, fullmatch=True), channel=st.sampled_from(["replies", "sync"]))
def test_an_operators_topics_parse_back(client: str, channel: str) -> None:
    fleet = FleetTopics("lab")
    topic = fleet.operator(client, "sync" if channel == "sync" else "replies")
    assert fleet.parse(topic) == OperatorTopic(client, "sync" if channel == "sync" else "replies")


@given(rollout=names)
def test_a_rollouts_topics_parse_back(rollout: str) -> None:
    fleet = FleetTopics("lab")
    singular: tuple[RolloutPart, ...] = ("plan", "state", "driver")
    for part in singular:
        assert fleet.parse(fleet.rollout(rollout, part)) == RolloutTopic(rollout, part)
    plural: tuple[RolloutPart, ...] = ("waves", "before")
    for part in plural:
        assert fleet.parse(fleet.rollout(rollout, part, "1")) == RolloutTopic(rollout, part, "1")
        with pytest.raises(TopicError):
            fleet.parse(fleet.rollout(rollout, part))


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    for topic in (text, f"tapster/v1/lab/{text}", f"tapster/v1/lab/hosts/h/{text}"):
        with suppress(TopicError):
            assert FleetTopics("lab").parse(topic) is not None


@pytest.mark.parametrize(
    "topic",
    [
        "tapster/v1/lab",
        "tapster/v1/other/hosts/h/agent",
        "tapster/v1/lab/hosts/H/agent",
        "tapster/v1/lab/hosts//agent",
        "tapster/v1/lab/hosts/h/agent/",
        "tapster/v1/lab/hosts/h/desired/guests",
        "tapster/v1/lab/hosts/h/desired/guests/a/b",
        "tapster/v1/lab/hosts/h/status/guests/.hidden",
        "tapster/v1/lab/hosts/h/events/weather",
        "tapster/v1/lab/operators/me/other",
    ],
)
def test_a_topic_that_the_bus_has_not_is_refused(topic: str) -> None:
    with pytest.raises(TopicError):
        FleetTopics("lab").parse(topic)


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "a+", "#", "$sys", "a\0", "ä", "a\n", "a" * 64])
def test_a_name_that_is_no_level_is_refused(name: str) -> None:
    with pytest.raises(TopicError):
        Topics(name, "h")
    with pytest.raises(TopicError):
        Topics("lab", name)
    with pytest.raises(TopicError):
        FleetTopics("lab").group_desired(name, "vm1")


@pytest.mark.parametrize("guest", ["", ".", "..", ".hidden", "a/b", "+", "#", "vm\n", "vm ", "x" * 129, "gäst"])
def test_a_desired_document_for_a_bad_guest_is_told_apart_and_never_built(guest: str) -> None:
    with pytest.raises(TopicError):
        Topics("lab", "h").desired(guest)
    if "/" not in guest:
        parsed = FleetTopics("lab").parse(f"tapster/v1/lab/hosts/h/desired/guests/{guest}")
        assert parsed == DesiredTopic(Scope("host", "h"), guest)
        assert not parsed.valid_guest
