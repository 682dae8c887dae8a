"""`tapster rollout`: a change that goes out in waves, which anybody can go on with, end or take back."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from agent.bus.operator import BusError
from agent.cli.push_files import read_definitions, tell_of_braces
from agent.cli.rollout_look import UnknownError, found, run, say
from agent.cli.rollout_view import as_json, progress
from agent.fleet.census import take_census
from agent.fleet.order import Definition, RefusedError
from agent.fleet.targets import Selection
from agent.fleet.words import counted, names, printable
from agent.rollout.begin import EVERYWHERE, NO_BLIND_SEAL, Terms, begin
from agent.rollout.claim import claim, read_ledger, rivals
from agent.rollout.drive import Drive
from agent.rollout.record import ENDED, Phase, Record, new_id
from agent.rollout.seat import Run, Seat, seat, whoami
from agent.rollout.waves import Share
from agent.settings import Settings
from agent.trust.seal import Seal

FAILURES_TOLD = 20
"""Hosts whose failure is told at the end."""

AGAIN_SECONDS = 2.0
"""Pause before a lost broker is tried again."""

Check = Callable[[Record], None]
"""Raises what speaks against going on with a rollout as it stands."""

Act = Callable[[Drive, Record], Awaitable[bool]]
"""What is done from the driver's seat; says whether it came to the end that was asked for."""


def start(
    file: Path | None, absent: str | None, *, wanted: Selection, terms: Terms, settings: Settings, output: str
) -> int:
    """Roll a definition out.

    Args:
        file: The definition of one guest; `-` is standard input.
        absent: Where there is no file: the guest whose disks are taken down.
        wanted: The hosts.
        terms: How.
        settings: Say which broker and which fleet.
        output: `json` is one object about the rollout at its end, to standard output alone.

    Returns:
        0 if every wave is done, 1 if it did not begin, was stopped, or was interrupted.
    """
    rollout = new_id()
    try:
        definition = _definition(file, absent, settings)
    except RefusedError as error:
        return say(str(error))
    if not terms.template:
        tell_of_braces("rollout", [definition])
    first = partial(begin, rollout=rollout, definition=definition, wanted=wanted, terms=terms)
    return _drive(rollout, first, _roll, settings, output, seal=terms.seal)


def resume(rollout: str, *, max_failed: Share | None, take_over: bool, settings: Settings, output: str) -> int:
    """Go on with a rollout that was interrupted or stopped, or with its rollback; returns as `start` does.

    Args:
        rollout: Its id.
        max_failed: How many hosts may fail from now on; None leaves it as it is.
        take_over: Do so although somebody drives it, who is told and stops.
        settings: Say which broker and which fleet.
        output: As for `start`.
    """

    async def taken_up(place: Seat) -> Record:
        def check(record: Record) -> None:
            _check_free(record, place, take_over=take_over)
            _check_unsigned(record)
            if record.state and record.state.phase in ENDED:
                raise UnknownError(f"rollout {rollout} is {record.state.phase}, so there is nothing to go on with")

        record = await _sat_down(place, rollout, check)
        others = rivals(record, (await read_ledger(place.op)).records().values())
        if others:
            raise UnknownError(f"rollout {others[0].id} is under way on some of its hosts; wait for it, or abort it")
        if record.state and record.state.phase is Phase.CLAIMING:
            await claim(place.op, record)
        if max_failed is not None:
            limit = max_failed.at_most_of(record.plan.hosts)
            record.plan = record.plan.model_copy(update={"max_failed": limit})
            topic = place.op.topics.rollout(rollout, "plan")
            await place.op.publish(topic, record.plan.model_dump_json().encode())
        return record

    async def go_on(drive: Drive, record: Record) -> bool:
        if record.state and record.state.phase is Phase.ROLLING_BACK:
            return await _restore(drive)
        return await _roll(drive, record)

    return _drive(rollout, taken_up, go_on, settings, output)


def abort(rollout: str, *, rollback: bool, settings: Settings, output: str) -> int:
    """End a rollout, whoever drives it; what was published stays, unless it is to be rolled back.

    Args:
        rollout: Its id.
        rollback: Restore the previous documents.
        settings: Say which broker and which fleet.
        output: As for `start`.
    """

    def check(record: Record) -> None:
        if record.state and record.state.phase in ENDED:
            raise UnknownError(f"rollout {rollout} is {record.state.phase} already; `tapster rollout undo {rollout}`")
        if rollback:
            _check_unsigned(record)

    async def taken_up(place: Seat) -> Record:
        return await _sat_down(place, rollout, check)

    async def end(drive: Drive, record: Record) -> bool:
        if rollback:
            return await _restore(drive)
        wave = f"wave {record.state.wave if record.state else 0} of {record.plan.waves}"
        await drive.stand(Phase.ABORTED, f"in {wave}, by {whoami()}; what was published stays")
        return True

    return _drive(rollout, taken_up, end, settings, output)


def undo(rollout: str, *, take_over: bool, settings: Settings, output: str) -> int:
    """Restore on every host what it was told before a rollout; what others pushed since is left alone.

    Args:
        rollout: Its id.
        take_over: Do so although somebody drives it.
        settings: Say which broker and which fleet.
        output: As for `start`.
    """

    async def taken_up(place: Seat) -> Record:
        def check(record: Record) -> None:
            _check_free(record, place, take_over=take_over)
            if record.state and record.state.phase is Phase.ROLLED_BACK:
                raise UnknownError(f"rollout {rollout} is rolled back already")
            _check_unsigned(record)

        return await _sat_down(place, rollout, check)

    async def back(drive: Drive, record: Record) -> bool:
        del record
        return await _restore(drive)

    return _drive(rollout, taken_up, back, settings, output)


def _definition(file: Path | None, absent: str | None, settings: Settings) -> Definition:
    if file is None:
        return Definition(absent or "", None)
    definitions = read_definitions([file], settings)
    if len(definitions) != 1:
        guests = names([definition.guest for definition in definitions])
        raise RefusedError(f"{file} defines {guests}; a rollout is of one guest, so that it can be stopped and undone")
    return definitions[0]


def _drive(
    rollout: str,
    first: Callable[[Seat], Awaitable[Record]],
    act: Act,
    settings: Settings,
    output: str,
    *,
    seal: Seal | None = None,
) -> int:
    """Begin, act from the driver's seat, and say what came of it; a broker that goes away meanwhile is waited for."""
    this = Run()

    async def work() -> tuple[Record, Drive, bool]:
        while True:
            try:
                async with seat(settings, rollout, this) as place:
                    record = await (_back(place, rollout) if this.states else first(place))
                    this.states.append(record.state)
                    drive = await _seated(place, record, settings, seal=seal)
                    with progress(record) as drive.show:
                        return record, drive, await act(drive, record)
            except BusError as error:
                if not this.states or seal is not None:
                    raise
                say(f"{error}; trying again, and Ctrl-C leaves it to `tapster rollout resume {rollout}`")
                await asyncio.sleep(AGAIN_SECONDS)

    def show(done: tuple[Record, Drive, bool]) -> int:
        return _report(*done, output)

    return run(work(), show, rollout)


async def _sat_down(place: Seat, rollout: str, check: Check) -> Record:
    """Take the seat, and only then read what is acted upon. It is checked before, too: nobody is unseated in vain."""
    before = await found(place, rollout)
    _check_whole(before)
    check(before)
    await place.take_over()
    record = await found(place, rollout)
    _check_whole(record)
    check(record)
    return record


async def _back(place: Seat, rollout: str) -> Record:
    """Sit down again after the broker was away, unless somebody else has been at it."""
    return await _sat_down(place, rollout, lambda record: _check_untouched(record, place))


async def _seated(place: Seat, record: Record, settings: Settings, *, seal: Seal | None) -> Drive:
    """With the newest of what is known about the hosts."""
    census = await take_census(place.op, EVERYWHERE, [record.plan.guest])
    return Drive(place, record, census, limit=settings.limits.document_bytes, seal=seal)


async def _roll(drive: Drive, record: Record) -> bool:
    if record.state and record.state.phase is Phase.ROLLING_BACK:  # the broker was away while it was taken back
        await drive.restore()
        return False
    _tell_who_is_away(drive, record)
    wave = record.state.wave if record.state else 1
    await drive.stand(Phase.ROLLING, f"wave {wave} of {record.plan.waves}", wave=wave)
    state = await drive.roll()
    if state.phase is Phase.STOPPED and record.plan.rollback and not drive.overtaken:
        _tell_failures(drive)
        say(f"{record.id} stopped: {state.message}; the previous documents are being restored")
        await drive.restore()
    return state.phase is Phase.DONE


def _tell_who_is_away(drive: Drive, record: Record) -> None:
    """Before anything is published: one host that is off would bring a whole rollout to its end, and maybe back."""
    plan, away = record.plan, drive.away
    if away:
        say(
            f"{names(away)} {'is' if len(away) == 1 else 'are'} away; a host that has not done it {plan.timeout_s:g} s "
            f"after its wave began has failed, and {plan.max_failed} of {counted(plan.hosts, 'host')} may"
        )


async def _restore(drive: Drive) -> bool:
    return (await drive.restore()).phase is Phase.ROLLED_BACK


def _tell_failures(drive: Drive) -> None:
    for one in list(drive.failures.values())[:FAILURES_TOLD]:
        message = "\n".join(printable(line) for line in one.message.splitlines())
        sys.stderr.write(f"{one.host}: {one.outcome}: {message}\n")
    if (rest := len(drive.failures) - FAILURES_TOLD) > 0:
        sys.stderr.write(f"and {rest} more; `tapster rollout status` names them\n")


def _report(record: Record, drive: Drive, well: bool, output: str) -> int:
    state = record.state
    if output == "json":
        sys.stdout.write(json.dumps(as_json(record, drive.failures), indent=2) + "\n")
    _tell_failures(drive)
    if state is None:
        return 1
    line = f"rollout {record.id} of {record.plan.guest}: {state.phase}: {state.message}"
    what_now = {
        Phase.STOPPED: f"mend what failed and `tapster rollout resume {record.id}`, or take it back with "
        f"`tapster rollout undo {record.id}`",
        Phase.ROLLING_BACK: f"`tapster rollout resume {record.id}` looks again",
    }.get(state.phase)
    stream = sys.stdout if well and output != "json" else sys.stderr
    stream.write(f"{printable(line)}\n")
    if what_now:
        sys.stderr.write(f"  what to do: {what_now}\n")
    return 0 if well else 1


def _check_unsigned(record: Record) -> None:
    if record.plan.signed:
        raise RefusedError(f"rollout {record.id}: {NO_BLIND_SEAL}")


def _check_whole(record: Record) -> None:
    if not record.whole:
        raise UnknownError(
            f"rollout {record.id} is not whole on the bus: waves or its state are missing; "
            f"`tapster rollout forget {record.id}`, and begin a new one"
        )


def _check_untouched(record: Record, place: Seat) -> None:
    state, driver, command = record.state, record.driver, "tapster rollout"
    if state and state not in place.run.states:
        what = f"{state.operator} has brought it to {state.phase} ({state.message})"
    elif driver and driver.session not in place.run.sessions:
        what = f"{driver.operator} {'drives it now' if driver.driving else 'has driven it'}"
    else:
        return
    if state and state.phase in ENDED:
        remedy = f"see `{command} status {record.id}`; what is still to go out needs a new rollout"
    elif record.driven:
        remedy = (
            f"see `{command} status {record.id}`, or agree with them and `{command} resume {record.id} --take-over`"
        )
    else:
        remedy = f"go on with `{command} resume {record.id}`, or end it with `{command} abort {record.id}`"
    raise UnknownError(
        f"rollout {record.id}: {what} while the broker was away from here, unless that has forgotten what it knew; "
        f"nothing more is published from here; {remedy}"
    )


def _check_free(record: Record, place: Seat, *, take_over: bool) -> None:
    mine = record.driver is not None and record.driver.session == place.me.session
    if record.driven and record.driver and not mine and not take_over:
        raise UnknownError(
            f"rollout {record.id} is driven by {record.driver.operator} now; end that with Ctrl-C there, or say "
            "--take-over to go on with it from here"
        )
