"""The host's session against a real mosquitto, through everything that can come between the two."""

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP
from typing import Literal

import pytest
from paho.mqtt.packettypes import PacketTypes
from structlog.testing import capture_logs

from agent.bus.connection import Connection, packet_properties
from agent.bus.message import Message
from agent.bus.session import BusSession
from agent.bus.topics import Topics
from agent.settings import BrokerSettings
from tests.broker import Broker, running_broker

TOPICS = Topics("lab", "db1")


@pytest.fixture
def broker() -> Iterator[Broker]:
    with running_broker() as broker:
        yield broker


def settings(broker: Broker, **changes: object) -> BrokerSettings:
    values = {
        "host": broker.host,
        "port": broker.port,
        "reconnect_min": 0.05,
        "reconnect_max": 0.3,
        "connect_timeout": 1,
        "will_delay": 0,
    }
    return BrokerSettings.model_validate({**values, **changes})


class Agent:
    """A session whose handlers write down what they got, and do as told."""

    def __init__(self, broker: BrokerSettings, *, groups: Sequence[str] = (), spool: int = 100) -> None:
        self.name = secrets.token_hex(4)
        self.documents: list[Message] = []
        self.batches = 0
        self.synced = 0
        self.at_sync: set[bytes] = set()
        self.fail: Callable[[], bool] = lambda: False
        self.gate = asyncio.Event()
        self.gate.set()
        self.session = BusSession(
            broker=broker,
            topics=TOPICS,
            groups=groups,
            birth=self._birth,
            on_documents=self._take,
            on_command=self._answer,
            on_synced=self._sync,
            spool=spool,
        )

    def _birth(self, state: Literal["online", "offline", "lost"]) -> bytes:
        return json.dumps({"state": state, "session": self.name}).encode()

    async def _take(self, messages: Sequence[Message]) -> None:
        self.batches += 1
        self.documents += messages
        await self.gate.wait()
        if self.fail():
            raise OSError("no space left on device")

    async def _answer(self, command: Message) -> bytes | None:
        if command.payload == b"fail":
            raise RuntimeError("told to")
        return command.topic.encode() + b" " + command.payload

    async def _sync(self) -> None:
        self.synced += 1
        self.at_sync = set(self.payloads)

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.documents]


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[Agent]:
    task = asyncio.create_task(agent.session.run())
    try:
        yield agent
    finally:
        task.cancel()
        await asyncio.wait((task,), timeout=10)
        assert task.cancelled(), task


@asynccontextmanager
async def outsider(broker: Broker, *filters: str, name: str = "outsider") -> AsyncIterator[Connection]:
    async with Connection(settings(broker), client=name, user=name) as connection:
        if filters:
            await connection.follow(filters)
        yield connection


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - many unlike conditions
            await asyncio.sleep(0.01)


async def receive(connection: Connection, count: int, seconds: float = 10) -> list[tuple[str, bytes]]:
    got: list[tuple[str, bytes]] = []
    async with asyncio.timeout(seconds):
        while len(got) < count:
            batch = await connection.batch()
            connection.acknowledge(batch)
            got += [(message.topic, bytes(message.payload)) for message in batch]
    return got


async def retained(broker: Broker, topic: str) -> bytes | None:
    async with outsider(broker, topic, name="reader") as connection:
        try:
            return (await receive(connection, 1, 0.5))[0][1]
        except TimeoutError:
            return None


async def test_the_snapshot_has_arrived_when_the_barrier_says_so(broker: Broker) -> None:
    agent = Agent(settings(broker), groups=["web"])
    async with outsider(broker) as operator:
        await operator.deliver(TOPICS.desired("vm1"), b"own", retain=True)
        await operator.deliver(TOPICS.group_desired("all", "vm2"), b"all", retain=True)
        await operator.deliver(TOPICS.group_desired("web", "vm3"), b"web", retain=True)
        await operator.deliver(TOPICS.group_desired("other", "vm4"), b"other", retain=True)
        async with running(agent):
            await until(lambda: agent.synced)
            assert agent.at_sync == {b"own", b"all", b"web"}
            assert agent.session.connected
            assert agent.session.last_sync is not None
            assert agent.session.trouble is None


async def test_resync_sends_everything_retained_again(broker: Broker) -> None:
    agent = Agent(settings(broker))
    async with outsider(broker) as operator, running(agent):
        await operator.deliver(TOPICS.desired("vm1"), b"1", retain=True)
        await until(lambda: agent.synced == 1 and agent.payloads)
        agent.documents.clear()
        await agent.session.resync()
        await until(lambda: agent.synced == 2)
        assert agent.payloads == [b"1"]


async def test_ten_thousand_documents_arrive_once_in_order_and_are_acknowledged(broker: Broker) -> None:
    count = 10_000
    async with outsider(broker) as operator:
        async with asyncio.TaskGroup() as sends:
            for number in range(count):
                topic = TOPICS.desired(f"vm{number}")
                sends.create_task(operator.deliver(topic, b"%d" % number + b" " * 2000, retain=True))
        agent = Agent(settings(broker, connect_timeout=30))
        async with running(agent):
            await until(lambda: agent.synced, 60)
            assert len(agent.documents) == count
            assert len({message.topic for message in agent.documents}) == count
            assert agent.batches < count / 10
        again = Agent(settings(broker, connect_timeout=30))
        async with running(again):
            await until(lambda: again.synced, 60)
            assert len(again.documents) == count, "acknowledged documents must come back as retained ones only"


async def test_an_invalid_guest_name_reaches_the_handler(broker: Broker) -> None:
    agent = Agent(settings(broker))
    async with outsider(broker) as operator, running(agent):
        await operator.deliver(f"{TOPICS.root}/desired/guests/.. bad", b"x", retain=True)
        await until(lambda: agent.documents)
        assert agent.documents[0].topic.endswith("/.. bad")
        await until(lambda: agent.synced)


async def test_several_documents_on_one_topic_all_arrive_in_order(broker: Broker) -> None:
    agent = Agent(settings(broker))
    async with outsider(broker) as operator, running(agent):
        await until(lambda: agent.synced)
        agent.gate.clear()
        for number in range(20):
            await operator.deliver(TOPICS.desired("vm1"), b"%d" % number, retain=True)
        agent.gate.set()
        await until(lambda: len(agent.documents) >= 20)
        assert agent.payloads[-20:] == [b"%d" % number for number in range(20)]


async def test_user_properties_are_handed_on(broker: Broker) -> None:
    agent = Agent(settings(broker))
    properties = packet_properties(PacketTypes.PUBLISH, UserProperty=[("generation", "7"), ("sha256", "ab")])
    async with outsider(broker) as operator, running(agent):
        await operator.deliver(TOPICS.desired("vm1"), b"x", retain=True, properties=properties)
        await until(lambda: agent.documents)
        assert agent.documents[0].properties == {"generation": "7", "sha256": "ab"}


async def test_what_was_not_taken_in_when_the_broker_was_killed_comes_again(broker: Broker) -> None:
    agent = Agent(settings(broker))
    async with running(agent):
        await until(lambda: agent.synced == 1)
        agent.gate.clear()
        async with outsider(broker) as operator:
            await operator.deliver(TOPICS.desired("vm1"), b"1", retain=True)
        await until(lambda: agent.payloads == [b"1"])
        broker.save()
        broker.restart(SIGKILL)
        agent.gate.set()
        await until(lambda: agent.synced == 2)
        assert agent.payloads[1:].count(b"1") >= 1


async def test_a_message_without_retain_that_was_not_taken_in_comes_again(broker: Broker) -> None:
    agent = Agent(settings(broker))
    failures = iter([True])
    agent.fail = lambda: next(failures, False)
    async with outsider(broker) as operator, running(agent):
        await until(lambda: agent.synced == 1)
        await operator.deliver(TOPICS.desired("vm1"), b"1")
        await until(lambda: len(agent.documents) == 2)
        assert agent.payloads == [b"1", b"1"]
        await until(lambda: agent.synced == 2)
        await asyncio.sleep(0.5)
        assert len(agent.documents) == 2


async def test_a_handler_that_always_fails_makes_no_hot_loop_and_says_why(broker: Broker) -> None:
    agent = Agent(settings(broker, reconnect_min=0.2, reconnect_max=0.8))
    agent.fail = lambda: True
    async with outsider(broker) as operator, running(agent):
        await operator.deliver(TOPICS.desired("vm1"), b"1", retain=True)
        await until(lambda: agent.session.trouble)
        await asyncio.sleep(2)
        assert 1 < agent.batches < 20
        assert "no space left on device" in str(agent.session.trouble)
        agent.fail = lambda: False
        await until(lambda: agent.synced)
        assert agent.session.trouble is None


async def test_requests_are_answered_and_a_failing_one_harms_nothing(broker: Broker) -> None:
    agent = Agent(settings(broker))
    inbox = "tapster/v1/lab/operators/me/replies"

    async def ask(sender: Connection, payload: bytes, reply_to: str) -> None:
        properties = packet_properties(PacketTypes.PUBLISH, ResponseTopic=reply_to, CorrelationData=b"42")
        await sender.deliver(TOPICS.command("plan"), payload, properties=properties)

    async with outsider(broker, inbox) as operator, running(agent):
        await until(lambda: agent.synced)
        await ask(operator, b"fail", inbox)
        async with outsider(broker, name="careless") as careless:
            # Mosquitto 2.0.11 passes this on, and 2.0.21 throws its sender out, who then waits in vain.
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await ask(careless, b"astray", "a/+/b")
        await ask(operator, b"good", inbox)
        (reply,) = await operator.batch()
        assert Message.received(reply).payload == TOPICS.command("plan").encode() + b" good"
        assert Message.received(reply).correlation == b"42"
        assert agent.synced == 1


async def states(connection: Connection, count: int) -> list[str]:
    return [json.loads(payload)["state"] for _, payload in await receive(connection, count)]


async def test_birth_and_farewell(broker: Broker) -> None:
    agent = Agent(settings(broker))
    async with outsider(broker, TOPICS.agent) as operator:
        async with running(agent):
            assert await states(operator, 1) == ["online"]
        assert await states(operator, 1) == ["offline"]
        assert json.loads(await retained(broker, TOPICS.agent) or b"") == {"state": "offline", "session": agent.name}


async def test_an_agent_that_is_cut_off_is_announced_as_lost_and_comes_back(broker: Broker) -> None:
    agent = Agent(settings(broker))
    async with outsider(broker, TOPICS.agent) as operator, running(agent):
        assert await states(operator, 1) == ["online"]
        cut(agent)
        assert await states(operator, 2) == ["lost", "online"]


async def test_an_agent_that_leaves_because_it_cannot_store_is_announced_as_lost(broker: Broker) -> None:
    agent = Agent(settings(broker))
    agent.session._pause = lambda *_: 3600.0  # type: ignore[method-assign]
    agent.fail = lambda: True
    async with outsider(broker, TOPICS.agent) as operator, running(agent):
        assert await states(operator, 1) == ["online"]
        await operator.deliver(TOPICS.desired("vm1"), b"1", retain=True)
        assert await states(operator, 1) == ["lost"]


def cut(agent: Agent) -> None:
    """Cut the agent's connection as a broken network does."""
    connection = agent.session._connection
    assert connection is not None
    own = connection._client.socket()
    assert isinstance(own, socket.socket)
    own.shutdown(socket.SHUT_RDWR)


async def test_of_two_agents_with_one_name_the_older_yields_and_says_so(broker: Broker) -> None:
    first, second = Agent(settings(broker, will_delay=30)), Agent(settings(broker, will_delay=30))
    first.session._pause = lambda *_: 1.0  # type: ignore[method-assign]
    async with running(first):
        await until(lambda: first.synced)
        async with running(second):
            await until(lambda: "another agent is connected" in str(first.session.trouble))
            assert "'db1'" in str(first.session.trouble)
            await until(lambda: second.synced == 2)
            assert second.session.connected
            assert not first.session.connected
        await until(lambda: first.session.connected and first.session.trouble is None)


async def test_an_agent_goes_on_after_another_one_with_its_name_was_killed(broker: Broker) -> None:
    first, second = Agent(settings(broker, will_delay=30)), Agent(settings(broker, will_delay=30))
    first.session._pause = lambda *_: 1.0  # type: ignore[method-assign]
    second.session._pause = lambda *_: 3600.0  # type: ignore[method-assign]
    async with running(first):
        await until(lambda: first.synced)
        async with running(second):
            await until(lambda: "another agent is connected" in str(first.session.trouble))
            await until(lambda: first.session.connected and first.session.trouble is None)
            assert not second.session.connected, "it waits for its next attempt, as good as dead"


async def test_what_is_published_without_a_broker_is_delivered_in_order_afterwards(broker: Broker) -> None:
    broker.stop()
    agent = Agent(settings(broker), spool=300)
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
    agent = Agent(settings(broker), spool=10_000)
    async with running(agent):
        await until(lambda: agent.synced)
        for number in range(3000):
            agent.session.publish_event(TOPICS.event("disk"), b"%d" % number)
            if number % 1000 == 500:
                await asyncio.sleep(0.02)
                broker.restart(SIGKILL)
        agent.session.publish_retained(TOPICS.status("vm1"), b"last")
        await until(lambda: not agent.session._outbox, 20)
        assert await retained(broker, TOPICS.status("vm1")) == b"last"


async def test_a_stopped_broker_stops_nothing_here_and_is_joined_again(broker: Broker) -> None:
    agent = Agent(settings(broker, keepalive=5))
    async with running(agent):
        await until(lambda: agent.synced)
        broker.signal(SIGSTOP)
        await until(lambda: not agent.session.connected, 20)
        await until(lambda: agent.session.trouble)
        await asyncio.sleep(1.5)
        broker.signal(SIGCONT)
        await until(lambda: agent.session.connected and agent.session.trouble is None, 20)


async def test_leaving_is_quick_even_when_the_broker_is_stopped(broker: Broker) -> None:
    agent = Agent(settings(broker))
    loop = asyncio.get_running_loop()
    async with running(agent):
        await until(lambda: agent.synced)
        broker.signal(SIGSTOP)
        began = loop.time()
    assert loop.time() - began < 4


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
    monkeypatch.setattr("agent.bus.session.DENIAL_SECONDS", 1.5)
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
