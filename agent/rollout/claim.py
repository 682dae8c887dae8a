"""That no two rollouts push the same guest to the same hosts at once.

MQTT has no compare-and-set. So each writes its claim, then reads all claims, and gives way to any other that it sees;
of two that see each other the one with the smaller id looks again and goes on if the other gave way. Of two rollouts
at least one has written before the other reads, so at least one sees the other. What a broker cluster without a
common order could still let through, hosts find out: two documents of one generation are a conflict, and both stop.
"""

import asyncio
from collections.abc import Iterable

from agent.bus.operator import Operator
from agent.bus.topics import FleetTopics
from agent.fleet.words import names
from agent.rollout.record import Ledger, Phase, Record, messages

LOOKS = 20
PAUSE_SECONDS = 0.5


class RivalError(Exception):
    """Another rollout is in the way. The message says which, whose, and what can be done."""


async def read_ledger(op: Operator, *filters: str) -> Ledger:
    """Plans, states, drivers and waves of all rollouts, and what else the filters say."""
    topics = op.topics
    ledger = Ledger(topics)
    parts = (topics.rollout("+", "plan"), topics.rollout("+", "state"), topics.rollout("+", "driver"))
    for message in await op.retained(*parts, topics.rollout("+", "waves", "+"), *filters):
        ledger.take(message)
    return ledger


def rivals(mine: Record, records: Iterable[Record]) -> list[Record]:
    """Rollouts under way of the same guest to some of the same hosts; a claim whose claimant is gone is none."""
    return [
        other
        for other in records
        if other.id != mine.id
        and other.under_way
        and other.plan.guest == mine.plan.guest
        and not mine.hosts().isdisjoint(other.hosts())
        and (other.driven or not _claims(other))
    ]


def _claims(record: Record) -> bool:
    return record.state is not None and record.state.phase is Phase.CLAIMING


async def claim(op: Operator, mine: Record) -> None:
    """Give way, or return when nobody is in the way and everybody will give way. The claim is on the bus by then.

    Raises:
        RivalError: Gave way; nothing of the claim is left.
    """
    for _ in range(LOOKS):
        others = rivals(mine, (await read_ledger(op)).records().values())
        if not others:
            return
        if any(other.id < mine.id or not _claims(other) for other in others):
            break
        await asyncio.sleep(PAUSE_SECONDS)
    await forget(op, mine)
    raise RivalError(told(mine, others))


def told(mine: Record, others: list[Record]) -> str:
    """Who is in the way, and what can be done about it."""
    other = others[0]
    common = sorted(mine.hosts() & other.hosts())
    plan = other.plan
    what = f"rollout {other.id} of guest {plan.guest!r} by {plan.operator} is under way on {names(common)}"
    if other.driven and other.driver:
        return (
            f"{what}, driven by {other.driver.operator}; nothing was published. Wait for its end "
            f"(`tapster rollout status {other.id}`), or agree with them and `tapster rollout abort {other.id}`"
        )
    return (
        f"{what}, and its driver is gone; nothing was published. Go on with it (`tapster rollout resume "
        f"{other.id}`) or end it (`tapster rollout abort {other.id}`) first"
    )


async def forget(op: Operator, record: Record) -> None:
    """Take everything of a rollout off the bus, its plan last: what has a plan is a rollout."""
    topics: FleetTopics = op.topics
    plan, *waves = (topic for topic, _ in messages(record, topics))
    keys = [topics.rollout(record.id, "before", key) for key in record.before]
    ends = [topics.rollout(record.id, "driver"), topics.rollout(record.id, "state")]
    await op.publish_all((topic, b"") for topic in (*keys, *waves, *ends))
    await op.publish(plan, b"")
