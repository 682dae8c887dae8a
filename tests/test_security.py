"""The threat table in deploy/SECURITY.md: whole, and every test that it names exists."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
HEADINGS = ["attack", "who", "defence", "test"]


def rows() -> list[list[str]]:
    text = (TESTS.parent / "deploy/SECURITY.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]
    return [row for row in cells if row != HEADINGS]


def functions_in(file: Path) -> set[str]:
    defined = ast.walk(ast.parse(file.read_text("utf-8")))
    return {node.name for node in defined if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_every_threat_has_a_test_that_exists(row: list[str]) -> None:
    assert len(row) == len(HEADINGS)
    assert all(row), "a cell is empty"
    named = re.findall(r"`([^`]+)`", row[-1])
    assert named, "no test is named"
    for test in named:
        file, _, function = test.partition("::")
        assert function.startswith("test_"), f"write {test} as file::test_function, the file below tests/"
        assert function in functions_in(TESTS / file), f"{test} is not there"
