"""The host's session against a real mosquitto, through everything that can come between the two."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from signal import SIGKILL

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes

from agent.bus.buffered_socket import BufferedSocket
from agent.bus.connection import Connection
from agent.bus.message import Message
from agent.bus.properties import packet_properties
from tests.broker import Broker, running_broker
from tests.bus.parties import TOPICS, Agent, outsider, receive, retained, running, settings, until


@pytest.fixture
def broker() -> Iterator[Broker]:
    with running_broker() as broker:
        yield broker


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
            await until(lambda: agent.synced)
            assert len(agent.documents) == count
            assert len({message.topic for message in agent.documents}) == count
            assert agent.batches < count / 10
        again = Agent(settings(broker, connect_timeout=30))
        async with running(again):
            await until(lambda: again.synced)
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
        await until(lambda: agent.session.trouble and agent.batches > 1)
        before = agent.batches
        await asyncio.sleep(2)
        assert agent.batches - before < 20
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
            with suppress(aiomqtt.MqttError):  # mosquitto 2.0.11 passes this on, and 2.0.21 throws its sender out
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
        assert json.loads(await retained(broker, TOPICS.agent)) == {"state": "offline", "session": agent.name}


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
    assert isinstance(own, BufferedSocket)
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
