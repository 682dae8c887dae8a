"""How long a person waits for the command line."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.bench.figures import Figure

HELP = [sys.executable, "-c", "from agent.cli.app import main; main()", "--help"]
NOTHING = [sys.executable, "-c", "pass"]


def help_figure(rounds: int) -> Figure:
    """`tapster --help` against the interpreter alone."""
    ours, bare = list[float](), list[float]()
    for _ in range(rounds):
        bare.append(_milliseconds(NOTHING))
        ours.append(_milliseconds(HELP))
    return Figure(
        name="tapster --help",
        unit="ms",
        values=ours,
        against="python -c pass",
        baseline=bare,
        target="≤ 250 ms",
        note="typer and its help; a command's own work is imported when it is called",
    )


def _milliseconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"COLUMNS": "80"})
    return 1000 * (time.perf_counter() - began)
