"""Figures: each is a measure of tapster beside a measure of something else in the same run, and their ratio."""

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the table.

    Attributes:
        name: What was measured.
        unit: Of all values: ms, MB, % or s.
        values: tapster's, one a round.
        against: What it is compared with; empty if with nothing.
        baseline: Its values, each measured in the same round as the value of the same place.
        target: What the project wants; empty where nothing was promised.
        note: Where the time goes, or how it was measured.
    """

    name: str
    unit: str
    values: Sequence[float]
    against: str = ""
    baseline: Sequence[float] = ()
    target: str = ""
    note: str = ""

    @property
    def value(self) -> float:
        """The median of tapster's values."""
        return statistics.median(self.values)

    @property
    def other(self) -> float | None:
        """The median of the baseline's values."""
        return statistics.median(self.baseline) if self.baseline else None

    @property
    def ratios(self) -> list[float]:
        """tapster's value over the baseline's, round by round."""
        return sorted(mine / other for mine, other in zip(self.values, self.baseline, strict=False) if other)

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios) if self.ratios else None


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies, the nearest one that was measured."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def show(figures: Sequence[Figure], skipped: Sequence[str], console: Console) -> None:
    """Print the table, then the notes by number."""
    table = Table(title="tapster beside what one would use instead, one run", title_justify="left")
    for heading in ("", "what", "tapster", "compared with", "that", "ratio", "rounds", "target"):
        table.add_column(heading, justify="right" if heading in {"tapster", "that", "ratio"} else "left")
    for number, figure in enumerate(figures, 1):
        table.add_row(
            str(number),
            figure.name,
            _measure(figure.value, figure.unit),
            figure.against,
            _measure(figure.other, figure.unit) if figure.other is not None else "",
            f"{figure.ratio:.2f}" if figure.ratio is not None else "",
            f"{figure.ratios[0]:.2f} to {figure.ratios[-1]:.2f}" if len(figure.ratios) > 1 else "",
            figure.target,
        )
    console.print(table)
    for number, figure in enumerate(figures, 1):
        if figure.note:
            console.print(f"{number:>3}  {figure.note}", highlight=False)
    for reason in skipped:
        console.print(f"skipped: {reason}", highlight=False)
    console.print("Values are medians over the rounds, and a ratio is the median of the rounds' ratios.")


def _measure(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def write(figures: Sequence[Figure], skipped: Sequence[str], path: Path) -> None:
    """Write everything that was measured as JSON."""
    rows = [
        {
            "name": figure.name,
            "unit": figure.unit,
            "value": figure.value,
            "values": list(figure.values),
            "against": figure.against or None,
            "baseline": figure.other,
            "baseline_values": list(figure.baseline),
            "ratio": figure.ratio,
            "target": figure.target or None,
            "note": figure.note,
        }
        for figure in figures
    ]
    where = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    path.write_text(json.dumps({"where": where, "figures": rows, "skipped": list(skipped)}, indent=1) + "\n")
