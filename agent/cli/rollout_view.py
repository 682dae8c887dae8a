"""What is shown of rollouts: how far one is while it is driven, how one stands, and all that there were."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from agent.cli.tables import age, console
from agent.fleet.clocks import SKEW
from agent.fleet.delivery import Delivery
from agent.fleet.words import counted, printable
from agent.rollout.drive import Tally
from agent.rollout.record import Phase, Record

STYLES = {
    Phase.DONE: "green",
    Phase.ROLLED_BACK: "green",
    Phase.ROLLING: "cyan",
    Phase.CLAIMING: "cyan",
    Phase.ROLLING_BACK: "yellow",
    Phase.ABORTED: "yellow",
    Phase.STOPPED: "bold red",
}


@contextmanager
def progress(record: Record) -> Iterator[Callable[[Tally], None]]:
    """What shows, each time it is called, how far a rollout is: a bar for all hosts and one for the wave, on stderr.

    Where that is no terminal, a line is written when a wave begins and when it has come to its end.
    """
    if not sys.stderr.isatty():
        said: set[str] = set()
        yield lambda tally: _say_once(said, record, tally)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        whole = bars.add_task(f"{record.id}", total=record.plan.hosts, counts="")
        wave = bars.add_task("", total=1, counts="")
        yield lambda tally: _move(bars, whole, wave, record, tally)


def _move(bars: Progress, whole: TaskID, wave: TaskID, record: Record, tally: Tally) -> None:
    done, failed = tally.done_before + tally.done, tally.failed_before + tally.failed
    limit = f"[red]{failed}[/] of {record.plan.max_failed} that may fail" if failed else ""
    bars.update(whole, completed=done, counts=f"hosts {limit}")
    name = _wave(record, tally)
    if bars.tasks[wave].description != name:
        bars.reset(wave, description=name, total=tally.hosts)
    bars.update(wave, completed=tally.done, counts=f"{_counts(tally)}")


def _say_once(said: set[str], record: Record, tally: Tally) -> None:
    if tally.waiting or not (tally.done or tally.failed):
        line = f"{_wave(record, tally)} begins: {counted(tally.hosts, 'host')}"
    else:
        line = f"{_wave(record, tally)} ends: {_counts(tally)}"
    if line not in said:
        said.add(line)
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _wave(record: Record, tally: Tally) -> str:
    if tally.restoring:
        return "restoring"
    canary = " (canary)" if tally.wave == 1 and record.plan.canary else ""
    return f"wave {tally.wave}/{record.plan.waves}{canary}"


def _counts(tally: Tally) -> str:
    words = [f"{tally.done} done"]
    words += [f"{tally.failed} failed"] if tally.failed else []
    words += [f"{tally.waiting} waiting"] if tally.waiting else []
    return ", ".join(words)


def as_json(record: Record, outcomes: Mapping[str, Delivery] | None = None) -> dict[str, Any]:
    """A rollout for programs; with the outcome on each host where that is known."""
    state, driver = record.state, record.driver
    shown: dict[str, Any] = {
        "id": record.id,
        "phase": state.phase.value if state else None,
        "message": state.message if state else "",
        "driven_by": driver.operator if driver and driver.driving else None,
        "wave": state.wave if state else None,
        **record.plan.model_dump(mode="json"),
    }
    if outcomes is not None:
        shown["outcomes"] = [outcome.as_json() for _, outcome in sorted(outcomes.items())]
    return shown


def print_status(record: Record, outcomes: Mapping[str, Delivery]) -> None:
    """How a rollout stands: what it is, a line for each wave, and what is wrong on hosts."""
    plan, state = record.plan, record.state
    what = "absent" if plan.definition is None else "present"
    lines = [
        f"Rollout:   {record.id}",
        f"Guest:     {plan.guest}, {what}",
        f"Targets:   {plan.targets}: {counted(plan.hosts, 'host')} in {counted(plan.waves, 'wave')}",
        f"Started:   {plan.started_at:%Y-%m-%d %H:%M:%S} UTC by {plan.operator}{_skew(plan.started_at)}",
        f"Limits:    {_limits(record)}",
        f"Phase:     {state.phase if state else 'unknown'}: {state.message if state else '-'}",
        f"Driven by: {_driver(record)}",
    ]
    out = console()
    for line in lines:
        out.print(Text(printable(line)))
    out.print(_waves(record, outcomes))
    for _, one in sorted(outcomes.items()):
        if one.over and one.outcome != "done":
            message = "\n".join(printable(line) for line in one.message.splitlines())
            out.print(Text(f"{one.host}: {one.outcome}: {message}", style="red"))


def _limits(record: Record) -> str:
    plan = record.plan
    beyond = "the previous documents are restored" if plan.rollback else "it stops"
    return f"{counted(plan.max_failed, 'host')} may fail, {plan.timeout_s:g} s for each wave; beyond that {beyond}"


def _waves(record: Record, outcomes: Mapping[str, Delivery]) -> Table:
    table = Table("WAVE", "HOSTS", "DONE", "FAILED", "OVERTAKEN", "WAITING", "NOT YET", box=None, pad_edge=False)
    for number, wave in record.waves.items():
        here = [outcomes[entry.host] for entry in wave.hosts if entry.host in outcomes]
        done = sum(one.outcome == "done" for one in here)
        waiting = sum(not one.over for one in here)
        overtaken = sum(one.outcome == "overtaken" for one in here)
        failed = len(here) - done - overtaken - waiting
        counts = (len(wave.hosts), done, failed, overtaken, waiting, len(wave.hosts) - len(here))
        name = f"{number} (canary)" if number == 1 and record.plan.canary else str(number)
        table.add_row(name, *map(str, counts))
    return table


def print_history(records: Sequence[Record]) -> None:
    """Every rollout in a line, the latest last."""
    table = Table("ID", "GUEST", "TARGETS", "HOSTS", "PHASE", "WAVE", "STARTED", "BY", "DRIVEN BY", "MESSAGE")
    table.box, table.pad_edge = None, False
    for record in records:
        plan, state = record.plan, record.state
        phase = state.phase if state else None
        started = f"{age(plan.started_at)} ago" if plan.started_at <= datetime.now(UTC) + SKEW else "in the future"
        cells = (
            record.id,
            plan.guest,
            plan.targets,
            str(plan.hosts),
            phase or "unknown",
            f"{state.wave if state else '-'}/{plan.waves}",
            started,
            plan.operator,
            _driver(record),
            state.message if state else "-",
        )
        row = [Text(printable(cell), overflow="fold") for cell in cells]
        row[4].stylize(STYLES[phase] if phase else "")
        table.add_row(*row)
    console().print(table)


def _driver(record: Record) -> str:
    if record.driven and record.driver:
        return record.driver.operator
    return "nobody (resume it, or abort it)" if record.under_way else "-"


def _skew(at: datetime) -> str:
    ahead = at - datetime.now(UTC)
    return f" (a clock that is {ahead.total_seconds():.0f} s ahead of ours)" if ahead > SKEW else ""
