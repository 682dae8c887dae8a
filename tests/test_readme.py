"""The README says what the code does. Its tables are made from the code: `python -m tests.test_readme` writes them."""

import re
import tomllib
from pathlib import Path

import pytest

from agent.definition import parse_domain
from agent.definition.classification import classification_markdown
from agent.settings import Settings
from agent.status import GuestStatus, Phase
from reconcilers.reason import Reason

README = Path(__file__).parent.parent / "README.md"


def reasons_markdown() -> str:
    rows = [
        f"| `{reason.value}` | {reason.meaning} | {reason.remedy}{' ↻' if reason.transient else ''} |"
        for reason in Reason
    ]
    return "\n".join(["| reason | meaning | what to do |", "| --- | --- | --- |", *rows])


def shown(table: str) -> str:
    """A table in which `<driver>` is text outside of code too, and not a tag that a browser swallows."""
    code_or_text = re.split("(`[^`]*`)", table)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in code_or_text) + "\n"


MADE = {"reasons": reasons_markdown, "elements": classification_markdown}


def around(text: str, name: str) -> tuple[str, str, str]:
    """What stands before, in and after a table's section."""
    before, begin, rest = text.partition(f"<!-- begin {name} -->\n")
    table, end, after = rest.partition(f"<!-- end {name} -->\n")
    assert begin, f"the README has no section {name}"
    assert end, f"the README's section {name} has no end"
    return before + begin, table, end + after


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", MADE)
def test_tables_are_the_code_s(name: str) -> None:
    _, table, _ = around(README.read_text("utf-8"), name)
    assert table == shown(MADE[name]()), "run `python -m tests.test_readme` to write the README's tables anew"


def test_every_phase_is_explained() -> None:
    text = README.read_text("utf-8")
    assert [phase for phase in Phase if f"| `{phase}` |" not in text] == []


def test_definitions_can_be_brought_up() -> None:
    assert blocks("xml")
    for xml in blocks("xml"):
        guest = parse_domain(xml.encode())
        assert guest.disks
        assert guest.complete


def test_settings_are_taken() -> None:
    assert blocks("toml")
    for text in blocks("toml"):
        Settings(**tomllib.loads(text))


def test_statuses_have_the_shape_of_the_bus() -> None:
    assert blocks("json")
    for text in blocks("json"):
        GuestStatus.model_validate_json(text)


if __name__ == "__main__":
    for name, make in MADE.items():
        before, _, after = around(README.read_text("utf-8"), name)
        README.write_text(f"{before}{shown(make())}{after}", "utf-8")
