"""`tapster doctor`: what is wrong with this host, and the command that mends it."""

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Literal

from rich.table import Table
from rich.text import Text

from agent.cli.tables import console
from agent.doctor.broker import broker
from agent.doctor.finding import Finding, Level, healthy
from agent.doctor.machine import machine
from agent.doctor.storage import agent_process, storage
from agent.fleet.words import printable
from agent.settings import Settings

STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


def run(*, settings: Settings, output: Literal["table", "json"]) -> int:
    """Look at everything that the agent needs of this host. Nothing is changed.

    Args:
        settings: The agent's.
        output: A table, or a list of objects with `subject, level, message, mend`, to standard output alone.

    Returns:
        0 if nothing is a problem, else 1.
    """
    findings = asyncio.run(examine(settings))
    if output == "json":
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        _print(findings)
    return 0 if healthy(findings) else 1


async def examine(settings: Settings) -> list[Finding]:
    """Every finding, in the order in which things depend on one another."""
    pid = agent_process(settings)
    agent = (
        Finding("agent", Level.OK, f"runs (process {pid})")
        if pid
        else Finding(
            "agent", Level.PROBLEM, "no agent runs here", "systemctl start tapster; journalctl -u tapster -n 50"
        )
    )
    return [
        *await machine(settings, pid),
        *await asyncio.to_thread(storage, settings, pid),
        *await broker(settings, pid),
        agent,
    ]


def _print(findings: list[Finding]) -> None:
    table = Table("CHECK", "RESULT", "WHAT", box=None, pad_edge=False)
    for finding in findings:
        result = Text(finding.level, style=STYLES[finding.level])
        table.add_row(finding.subject, result, Text(printable(finding.message), overflow="fold"))
    console().print(table)
    for finding in findings:
        if finding.mend:
            sentence = f"{finding.subject}: {finding.message}\n  what to do: {finding.mend}"
            console().print(sentence, markup=False, soft_wrap=True)
