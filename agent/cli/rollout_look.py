"""`tapster rollout status`, `history` and `forget`, and what all of `tapster rollout` says in the same way."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from agent.bus.operator import BusError, Operator, operator
from agent.bus.topics import TopicError
from agent.cli.rollout_view import as_json, print_history, print_status
from agent.fleet.census import take_census
from agent.fleet.delivery import Delivery
from agent.fleet.order import RefusedError
from agent.fleet.targets import TargetError
from agent.fleet.words import printable
from agent.rollout.begin import EVERYWHERE
from agent.rollout.claim import RivalError, forget, read_ledger
from agent.rollout.outcomes import outcomes
from agent.rollout.record import ENDED, Record
from agent.rollout.seat import Seat, TakenOverError
from agent.settings import Settings

T = TypeVar("T")


class UnknownError(Exception):
    """There is no such rollout, or it can't be gone on with. The message says why and what can be done."""


def status(rollout: str, *, settings: Settings, output: str) -> int:
    """Print how a rollout stands, as its hosts' statuses tell now; returns 0 once it has come to its end, else 1."""

    async def look() -> tuple[Record, dict[str, Delivery]]:
        async with operator(settings) as op:
            record = await found(op, rollout)
            census = await take_census(op, EVERYWHERE, [record.plan.guest])
            return record, outcomes(record, census)

    def show(looked: tuple[Record, dict[str, Delivery]]) -> int:
        record, each = looked
        if output == "json":
            sys.stdout.write(json.dumps(as_json(record, each), indent=2) + "\n")
        else:
            print_status(record, each)
        return 0 if record.state and record.state.phase in ENDED else 1

    return run(look(), show)


def history(*, settings: Settings, output: str) -> int:
    """Print every rollout that the bus knows, the latest last; returns 0, or 1 if one can't be read."""

    async def look() -> tuple[list[Record], dict[str, str]]:
        async with operator(settings) as op:
            ledger = await read_ledger(op)
            return list(ledger.records().values()), ledger.unreadable

    def show(looked: tuple[list[Record], dict[str, str]]) -> int:
        records, unreadable = looked
        if output == "json":
            sys.stdout.write(json.dumps([as_json(record) for record in records], indent=2) + "\n")
        elif records:
            print_history(records)
        else:
            say("no rollout is on the bus; begin one with `tapster rollout FILE -l …`")
        for rollout, why in unreadable.items():
            say(f"rollout {rollout} can't be read by this version: {why}")
        return 1 if unreadable else 0

    return run(look(), show)


def drop(rollout: str, *, settings: Settings) -> int:
    """Take all that is kept of a rollout off the bus; hosts and their documents are not touched. Returns 0 or 1."""

    async def work() -> None:
        async with operator(settings) as op:
            record = await found(op, rollout)
            if record.under_way and record.whole:
                raise UnknownError(
                    f"rollout {rollout} is under way; end it with `tapster rollout abort {rollout}` first"
                )
            if record.under_way and record.driven and record.driver:  # what is not whole can't be ended, only forgotten
                raise UnknownError(
                    f"rollout {rollout} is driven by {record.driver.operator} now; end that with Ctrl-C there first"
                )
            await forget(op, record)

    return run(work(), lambda _: 0)


async def found(place: Seat | Operator, rollout: str) -> Record:
    """A rollout as it is on the bus, with all that is kept of it.

    Raises:
        UnknownError: There is none, or it can't be read.
    """
    op = place.op if isinstance(place, Seat) else place
    op.topics.rollout(rollout, "plan")
    ledger = await read_ledger(op, op.topics.rollout(rollout, "before", "+"))
    record = ledger.record(rollout)
    if record is None:
        why = ledger.unreadable.get(rollout)
        if why:
            raise UnknownError(f"rollout {rollout} can't be read by this version: {why}")
        raise UnknownError(f"there is no rollout {rollout!r} on the bus; `tapster rollout history` lists them")
    return record


def run(work: Coroutine[Any, Any, T], show: Callable[[T], int], rollout: str | None = None) -> int:
    """Do a piece of work and show what came of it, or say why it did not; returns the exit code."""
    try:
        return show(asyncio.run(work))
    except (BusError, TopicError, TargetError, RefusedError, RivalError, UnknownError) as error:
        return say(str(error))
    except TakenOverError as error:
        return say(f"{rollout}: {error}")
    except KeyboardInterrupt:
        return say(
            "interrupted; nothing more is published, and hosts keep what they have. Go on with `tapster rollout resume "
            f"{rollout}`, or end it with `tapster rollout abort {rollout}` (--rollback restores what was before)"
        )


def say(words: str) -> int:
    """Tell a person; returns the exit code of what did not work."""
    sys.stderr.write(f"tapster rollout: {printable(words)}\n")
    return 1
