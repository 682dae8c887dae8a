"""OPERATING.md explains every phase and condition there is: `python -m tests.test_operating` writes its tables."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.meanings import CONDITIONS, PHASES
from agent.status import ConditionType, Phase
from tests.test_readme import around, shown

GUIDE = Path(__file__).parent.parent / "deploy/OPERATING.md"


def table(first: str, meanings: Mapping[Phase, tuple[str, str]] | Mapping[ConditionType, tuple[str, str]]) -> str:
    rows = [f"| `{name}` | {meaning} | {remedy} |" for name, (meaning, remedy) in meanings.items()]
    return shown("\n".join([f"| {first} | meaning | what to do |", "| --- | --- | --- |", *rows]))


MADE = {"phases": table("phase", PHASES), "conditions": table("condition", CONDITIONS)}


@pytest.mark.parametrize("name", MADE)
def test_tables_are_the_code_s(name: str) -> None:
    _, written, _ = around(GUIDE.read_text("utf-8"), name)
    assert written == MADE[name], "run `python -m tests.test_operating` to write the tables of OPERATING.md anew"


def test_every_phase_and_every_condition_is_explained() -> None:
    assert list(PHASES) == list(Phase)
    assert list(CONDITIONS) == list(ConditionType)


if __name__ == "__main__":
    for section, made in MADE.items():
        before, _, after = around(GUIDE.read_text("utf-8"), section)
        GUIDE.write_text(f"{before}{made}{after}", "utf-8")
