"""`tapster plan`: what definitions would change, on this host or on a live one, without changing anything."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.table import Table

from agent.bus.operator import BusError, operator
from agent.cli.inspect import read
from agent.cli.push_files import RefusedError, read_definitions
from agent.cli.tables import console, printable
from agent.definition import DocumentRejected, Limits, parse_each
from agent.events import FindingData
from agent.preview import GuestPlan, preview
from agent.settings import Settings
from reconcilers.errors import DiskError
from reconcilers.host import Host, probe
from reconcilers.spec import DiskKey
from reconcilers.tag import instance_id

ANSWER_SECONDS = 10.0
"""How long a live agent may take to answer; it looks at its disks, no more."""


def run(files: Sequence[Path], *, host: str | None, settings: Settings, output: Literal["table", "json"]) -> int:
    """Print the plans.

    Args:
        files: Definitions; `-` is standard input.
        host: Ask the live agent of this host over the bus; None looks at this machine itself.
        settings: Which broker, or which runtime folder and names.
        output: A table, or a list of plans as JSON.

    Returns:
        0, or 1 if anything would be refused, or a file or a host could not be asked.
    """
    try:
        plans = asyncio.run(_ask(files, host, settings) if host else _look(files, settings))
    except (BusError, RefusedError, DiskError, OSError) as error:
        sys.stderr.write(f"tapster plan: {error}\n")
        return 1
    if output == "json":
        sys.stdout.write(json.dumps([plan.model_dump(mode="json") for plan in plans], indent=2) + "\n")
    else:
        _print(plans)
    return 1 if any(plan.refused for plan in plans) else 0


async def _look(files: Sequence[Path], settings: Settings) -> list[GuestPlan]:
    limits = Limits(settings.limits.document_bytes, settings.limits.disks_per_guest, settings.limits.xml_depth)
    outcomes = [outcome for file in files for outcome in parse_each(read(file, limits.max_bytes + 1), limits=limits)]
    guests = [outcome for outcome in outcomes if not isinstance(outcome, DocumentRejected)]
    abilities = await probe(settings.blktap.servers, frozenset(settings.blktap.formats))
    host = Host(
        settings.paths.runtime,
        instance_id(settings.fleet, settings.host, str(settings.paths.runtime)),
        abilities,
        settings.images.allowed(settings.paths),
        server_patience=settings.blktap.start_timeout,
        on_change=lambda *_: None,
    )
    try:
        named = {DiskKey(guest.name, disk.target) for guest in guests for disk in guest.disks if disk.target}
        found, _ = await host.survey(named)
        return [
            _rejected(settings.host, outcome)
            if isinstance(outcome, DocumentRejected)
            else await preview(host, settings.host, outcome, {key for key in found if key.guest == outcome.name})
            for outcome in outcomes
        ]
    finally:
        host.close()


def _rejected(host: str, rejected: DocumentRejected) -> GuestPlan:
    errors = tuple(FindingData.of(finding) for finding in rejected.findings)
    return GuestPlan(host=host, guest=rejected.guest, steps=(), errors=errors)


async def _ask(files: Sequence[Path], host: str, settings: Settings) -> list[GuestPlan]:
    definitions = [(one.guest, (one.xml or "").encode()) for one in read_definitions(files, settings)]
    plans = list[GuestPlan]()
    async with operator(settings) as bus:
        for guest, xml in definitions:
            name = {"guest": guest}
            async for _, reply in bus.ask([host], "plan", xml, seconds=ANSWER_SECONDS, properties=name):
                plans.append(GuestPlan.model_validate_json(reply))
    if len(plans) < len(definitions):
        raise BusError(
            f"host {host} did not answer within {ANSWER_SECONDS:g} s; `tapster status --host {host}` tells whether it "
            "is online"
        )
    return plans


def _print(plans: Sequence[GuestPlan]) -> None:
    table = Table("GUEST", "TARGET", "STEP", "WHY", box=None, pad_edge=False)
    for plan in plans:
        for step in plan.steps:
            why = step.message or (step.reason.meaning if step.reason else "")
            table.add_row(printable(plan.guest or "-"), printable(step.target), step.step, printable(why))
    if table.row_count:
        console().print(table)
    for plan in plans:
        for error in plan.errors:
            place = f"line {error.line}: " if error.line else ""
            sys.stderr.write(f"{printable(plan.guest or '-')}: {place}{error.reason}: {printable(error.message)}\n")
