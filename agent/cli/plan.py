"""`tapster plan`: what definitions would change, on this host or on a live one, without changing anything."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from agent.bus.operator import BusError, operator
from agent.bus.topics import TopicError
from agent.cli.push_files import content, limits_of, read_definitions, tell_of_braces
from agent.cli.tables import console
from agent.definition import DocumentRejected, parse_each
from agent.events import FindingData
from agent.fleet.census import take_census
from agent.fleet.forecast import Forecast, line, summary
from agent.fleet.order import RefusedError, filled
from agent.fleet.targets import Selection, Target, TargetError, check_names, known, resolve, why_silent
from agent.fleet.words import counted, printable
from agent.host import abilities_of, host_of
from agent.preview import GuestPlan, preview
from agent.settings import Settings
from reconcilers.blktap.abilities import starter_for
from reconcilers.errors import DiskError
from reconcilers.spec import DiskKey


def run(files: Sequence[Path], *, settings: Settings, output: str) -> int:
    """Print what definitions would change on this machine, which is looked at itself.

    Args:
        files: Definitions; `-` is standard input.
        settings: The runtime folder and names.
        output: `json` is a list of plans; else a table.

    Returns:
        0, or 1 if anything would be refused or a file can't be used.
    """
    try:
        found = asyncio.run(_look(files, settings))
    except (DiskError, OSError, RefusedError) as error:
        return _say(str(error))
    plans = [plan for _, plan in found]
    if output == "json":
        _print_json(plans)
    else:
        _print(plans, [str(file) for file, _ in found])
    return 1 if any(plan.refused for plan in plans) else 0


def ask(
    files: Sequence[Path], wanted: Selection, *, template: bool, seconds: float, settings: Settings, output: str
) -> int:
    """Print what live agents say that they would do, each answer as it comes and then what it comes to.

    Args:
        files: Definitions; `-` is standard input.
        wanted: Whom to ask.
        template: Fill `{host}` and labels into source paths.
        seconds: How long to wait for answers to each definition; an agent looks at its disks, no more.
        settings: Which broker and which fleet.
        output: `json` is a list of plans, with the error Unanswered where there is none; else lines, or for one
            host a table.

    Returns:
        0, or 1 if anything would be refused, or a host did not answer.
    """
    answers = _Answers(as_lines=output == "table" and wanted.one_host is None)
    try:
        forecast, targets = asyncio.run(
            _ask(files, wanted, answers, template=template, seconds=seconds, settings=settings)
        )
    except (BusError, RefusedError, TargetError, TopicError) as error:
        return _say(str(error))
    if output == "json":
        _print_json(forecast.plans, _without_answer(forecast, targets))
    elif wanted.one_host:
        _print(forecast.plans)
    complain = output == "json" or wanted.one_host is not None
    if not complain or forecast.silent or forecast.unreadable:
        stream = sys.stderr if complain else sys.stdout
        stream.writelines(f"{line}\n" for line in summary(forecast, targets))
    return 0 if forecast.well else 1


async def _look(files: Sequence[Path], settings: Settings) -> list[tuple[Path, GuestPlan]]:
    """The plan of each guest, with its file."""
    limits = limits_of(settings)
    outcomes = [(file, outcome) for file in files for outcome in parse_each(content(file, settings), limits=limits)]
    guests = [outcome for _, outcome in outcomes if not isinstance(outcome, DocumentRejected)]
    abilities = await abilities_of(settings, starter_for(settings.paths.runtime))
    host = host_of(settings, abilities, on_change=lambda *_: None)
    try:
        named = {DiskKey(guest.name, disk.target) for guest in guests for disk in guest.disks if disk.target}
        found, _ = await host.survey(named)
        return [
            (file, _rejected(settings.host, outcome))
            if isinstance(outcome, DocumentRejected)
            else (
                file,
                await preview(host, settings.host, outcome, {key for key in found if key.guest == outcome.name}),
            )
            for file, outcome in outcomes
        ]
    finally:
        await host.close()


def _rejected(host: str, rejected: DocumentRejected) -> GuestPlan:
    errors = tuple(FindingData.of(finding) for finding in rejected.findings)
    return GuestPlan(host=host, guest=rejected.guest, steps=(), errors=errors)


@dataclass(frozen=True, slots=True)
class _Answers:
    """Shows answers as they come, and on a terminal how many there are."""

    as_lines: bool

    def show(self, plan: GuestPlan, forecast: Forecast) -> None:
        if self.as_lines:
            self.clear()
            sys.stdout.write(f"{line(plan)}\n")
            sys.stdout.flush()
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{len(forecast.plans)} of {counted(len(forecast.asked), 'answer')}")
            sys.stderr.flush()

    def clear(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


async def _ask(
    files: Sequence[Path], wanted: Selection, answers: _Answers, *, template: bool, seconds: float, settings: Settings
) -> tuple[Forecast, list[Target]]:
    definitions = read_definitions(files, settings)
    if not template:
        tell_of_braces("plan", definitions)
    async with operator(settings) as bus:
        check_names(wanted, bus.topics)
        census = await take_census(bus, wanted, ())
        targets = known(resolve(wanted, census.fleet.hosts, settings.fleet), settings.fleet)
        forecast = Forecast(frozenset((target.host, one.guest) for target in targets for one in definitions))
        online = [target for target in targets if target.online]
        for definition in definitions:
            requests = {
                target.host: (filled(definition, target, template=template) or "").encode() for target in online
            }
            name = {"guest": definition.guest}
            async for host, reply in bus.ask_each(requests, "plan", seconds=seconds, properties=name):
                try:
                    forecast.plans.append(GuestPlan.model_validate_json(reply))
                except ValidationError:
                    forecast.unreadable[host] = reply[:200].decode("utf-8", "replace")
                else:
                    answers.show(forecast.plans[-1], forecast)
        answers.clear()
    return forecast, targets


def _say(words: str) -> int:
    sys.stderr.write(f"tapster plan: {words}\n")
    return 1


def _without_answer(forecast: Forecast, targets: Sequence[Target]) -> list[dict[str, Any]]:
    """In the form of plans, what nobody answered: a host that is left out would pass for one that was not asked."""
    whys = {target.host: why_silent(target.state) for target in targets}
    whys |= {host: f"an answer that this version can't read: {text}" for host, text in forecast.unreadable.items()}
    error = {"reason": "Unanswered", "path": "", "line": None}
    return [
        {"host": host, "guest": guest, "steps": [], "errors": [error | {"message": whys[host]}]}
        for host, guest in forecast.unanswered
    ]


def _print_json(plans: Sequence[GuestPlan], more: Sequence[dict[str, Any]] = ()) -> None:
    sys.stdout.write(json.dumps([*(plan.model_dump(mode="json") for plan in plans), *more], indent=2) + "\n")


def _print(plans: Sequence[GuestPlan], files: Sequence[str] = ()) -> None:
    """Steps as a table; errors by their guest, or by their file where not even that is known."""
    table = Table("GUEST", "TARGET", "STEP", "WHY", box=None, pad_edge=False)
    for plan in plans:
        for step in plan.steps:
            why = step.message or (step.reason.meaning if step.reason else "")
            cells = (plan.guest or "-", step.target, step.step, why)
            table.add_row(*(Text(printable(cell), overflow="fold") for cell in cells))
    if table.row_count:
        console().print(table)
    for plan, file in zip(plans, files or ["-"] * len(plans), strict=True):
        for error in plan.errors:
            place = f"line {error.line}: " if error.line else ""
            sys.stderr.write(f"{printable(plan.guest or file)}: {place}{error.reason}: {printable(error.message)}\n")
