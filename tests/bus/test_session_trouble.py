"""The host's session while the broker is away, stopped, killed, or says no."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP

import pytest
from structlog.testing import capture_logs

from agent.bus.message import Message
from tests.broker import Broker, running_broker
from tests.bus.parties import TOPICS, Agent, outsider, receive, retained, running, settings, until


@pytest.fixture
def broker() -> Iterator[Broker]:
    with running_broker() as broker:
        yield broker


async def test_what_is_published_without_a_broker_is_delivered_in_order_afterwards(broker: Broker) -> None:
    broker.stop()
    agent = Agent(settings(broker), room=300)
    async with running(agent):
        await until(lambda: agent.session.trouble)
        for number in range(400):
            agent.session.publish_event(TOPICS.event("disk"), b"%d" % number)
            agent.session.publish_retained(TOPICS.status(f"vm{number % 2}"), b"%d" % number)
        assert agent.session.dropped_events == 100
        broker.start()
        async with outsider(broker, f"{TOPICS.root}/events/+") as operator:
            events = await receive(operator, 300)
        assert [payload for _, payload in events] == [b"%d" % number for number in range(100, 400)]
        assert await retained(broker, TOPICS.status("vm0")) == b"398"
        assert await retained(broker, TOPICS.status("vm1")) == b"399"


async def test_nothing_published_is_lost_when_the_broker_is_killed_again_and_again(broker: Broker) -> None:
    agent = Agent(settings(broker), room=10_000)
    async with running(agent):
        await until(lambda: agent.synced)
        for number in range(3000):
            agent.session.publish_event(TOPICS.event("disk"), b"%d" % number)
            if number % 1000 == 500:
                await asyncio.sleep(0.02)
                broker.restart(SIGKILL)
        agent.session.publish_retained(TOPICS.status("vm1"), b"last")
        await until(lambda: not agent.session._outbox)
        assert await retained(broker, TOPICS.status("vm1")) == b"last"


async def test_a_stopped_broker_stops_nothing_here_and_is_joined_again(broker: Broker) -> None:
    agent = Agent(settings(broker, keepalive=5))
    async with running(agent):
        await until(lambda: agent.synced)
        broker.signal(SIGSTOP)
        await until(lambda: not agent.session.connected)
        await until(lambda: agent.session.trouble)
        await asyncio.sleep(1.5)
        broker.signal(SIGCONT)
        await until(lambda: agent.session.connected and agent.session.trouble is None)


async def test_leaving_is_quick_even_when_the_broker_is_stopped(broker: Broker) -> None:
    agent = Agent(settings(broker))
    loop = asyncio.get_running_loop()
    async with running(agent):
        await until(lambda: agent.synced)
        broker.signal(SIGSTOP)
        began = loop.time()
    assert loop.time() - began < 15


async def test_cancelling_is_not_forgotten_when_a_handler_fails_in_that_moment(broker: Broker) -> None:
    agent = Agent(settings(broker))

    async def fail_when_cancelled(_: Sequence[Message]) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise OSError("the store is closed") from None

    agent.session._on_documents = fail_when_cancelled
    async with outsider(broker) as operator:
        await operator.deliver(TOPICS.desired("vm1"), b"1", retain=True)
        async with running(agent):
            await asyncio.sleep(0.5)


async def test_a_group_that_was_left_is_no_longer_listened_to(broker: Broker) -> None:
    before = Agent(settings(broker), groups=["web"])
    async with running(before):
        await until(lambda: before.synced)
    after = Agent(settings(broker))
    with capture_logs() as logs:
        async with outsider(broker) as operator, running(after):
            await until(lambda: after.synced)
            for _ in range(3):
                after.documents.clear()
                await operator.deliver(TOPICS.group_desired("web", "vm1"), b"web", retain=True)
                await operator.deliver(TOPICS.group_desired("all", "vm2"), b"all", retain=True)
                await until(lambda: after.documents)
            assert set(after.payloads) == {b"all"}
    assert [line.get("group") for line in logs if "left a group" in line["event"]] == ["web"]


async def test_what_came_while_the_agent_was_away_arrives_when_it_is_back(broker: Broker) -> None:
    agent = Agent(settings(broker))
    async with running(agent):
        await until(lambda: agent.synced)
    async with outsider(broker) as operator:
        await operator.deliver(TOPICS.desired("vm1"), b"1", retain=True)
        await operator.deliver(TOPICS.desired("vm1"), b"", retain=True)
    async with running(agent):
        await until(lambda: agent.synced == 2)
        assert agent.payloads == [b"1", b""]


@pytest.mark.parametrize("right", ["read", "write", "deny"])
async def test_a_barrier_that_the_access_list_stops_is_reported_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: str
) -> None:
    monkeypatch.setattr("agent.bus.denials.DENIAL_SECONDS", 1.5)
    rules = tmp_path / "acl"
    others = "".join(f"topic readwrite {TOPICS.root}/{rest}\n" for rest in ("agent", "desired/#", "status/#"))
    rules.write_text(f"topic {right} {TOPICS.sync}\n{others}")
    with running_broker(f"acl_file {rules}\n") as broker:
        agent = Agent(settings(broker, connect_timeout=0.3))
        async with running(agent), outsider(broker) as operator:
            await until(lambda: "hosts/db1/sync" in str(agent.session.trouble))
            await operator.deliver(TOPICS.desired("vm1"), b"1", retain=True)
            await until(lambda: b"1" in agent.payloads)
            agent.session.publish_retained(TOPICS.status("vm1"), b"up")
            assert await retained(broker, TOPICS.agent), "the birth does not wait for the barrier for ever"
            await until(lambda: not agent.session._outbox)
            rules.write_text("topic readwrite #\n")
            broker.signal(SIGHUP)
            await until(lambda: agent.synced)
            await until(lambda: agent.session.trouble is None)


async def test_a_refused_status_is_reported_and_does_not_hold_up_others(tmp_path: Path) -> None:
    rules = tmp_path / "acl"
    rules.write_text("topic readwrite #\ntopic deny tapster/v1/lab/hosts/db1/status/guests/vm1\n")
    with running_broker(f"acl_file {rules}\n") as broker:
        agent = Agent(settings(broker))
        async with running(agent):
            agent.session.publish_retained(TOPICS.status("vm1"), b"1")
            agent.session.publish_retained(TOPICS.status("vm2"), b"2")
            await until(lambda: agent.session.trouble)
            assert TOPICS.status("vm1") in str(agent.session.trouble)
            assert "access list" in str(agent.session.trouble)
            assert await retained(broker, TOPICS.status("vm2")) == b"2"


async def test_a_status_larger_than_the_broker_takes_is_reported_and_does_not_hold_up_others() -> None:
    with running_broker("max_packet_size 2000\n") as broker:
        agent = Agent(settings(broker))
        async with running(agent):
            agent.session.publish_retained(TOPICS.status("vm1"), b"x" * 2000)
            agent.session.publish_retained(TOPICS.status("vm2"), b"2")
            await until(lambda: agent.session.trouble)
            assert "max_packet_size" in str(agent.session.trouble)
            assert await retained(broker, TOPICS.status("vm2")) == b"2"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"port": 1}, "cannot reach the broker at 127.0.0.1:1: [Errno 111] Connection refused"),
        ({"host": "no.such.host.invalid"}, "cannot reach the broker at no.such.host.invalid:"),
        ({"password_file": "/nonexistent"}, "'/nonexistent'"),
        ({"tls": {"ca_file": "/nonexistent"}}, "files named under [broker]"),
    ],
)
async def test_a_broker_that_cannot_be_used_is_named_with_the_reason(
    broker: Broker, changes: dict[str, object], said: str
) -> None:
    agent = Agent(settings(broker, **changes))
    async with running(agent):
        await until(lambda: agent.session.trouble)
        assert said in str(agent.session.trouble)


async def test_a_refused_connection_names_the_settings_to_check() -> None:
    with running_broker("allow_anonymous false\n") as broker:
        agent = Agent(settings(broker))
        async with running(agent):
            await until(lambda: agent.session.trouble)
            assert "Not authorized; check broker.username" in str(agent.session.trouble)
