"""The table that every attribute and child is looked up in."""

from agent.definition.classification import STRUCTURE, TABLE, Handling, classification_markdown, classification_table
from tests.definition.samples import disk


def test_names_are_there_once_and_under_a_known_parent() -> None:
    names = [row.name for row in classification_table()]
    assert len(names) == len(set(names)) == len(TABLE)
    for name in names:
        parent, _, _ = name.rpartition("/")
        assert parent == "" or parent in STRUCTURE


def test_the_table_is_what_the_parser_does() -> None:
    for row in classification_table():
        parent, _, last = row.name.rpartition("/")
        own = (
            f"<{parent} {last[1:]}='1'/>"
            if last.startswith("@")
            else f"<{parent}><{last} x='1'><y/></{last}></{parent}>"
        )
        if not parent:
            own = "" if last.startswith("@") else f"<{last} x='1' name='other'><y/></{last}>"
        attribute = f" {last[1:]}='1'" if not parent and last.startswith("@") else ""
        found = disk(f"<disk{attribute}>{own}</disk>")
        lists = {
            Handling.HONOURED: found.honoured,
            Handling.PASSED: found.passed,
            Handling.UNHONOURED: found.unhonoured,
            Handling.REFUSED: [
                finding.path.removeprefix("/domain/devices/disk[1]/")
                for finding in found.refused
                if finding.reason == "UnsupportedFeature"
            ],
        }
        assert row.name in lists[row.handling], row
        assert not any(row.name in names for handling, names in lists.items() if handling is not row.handling), row


def test_markdown_names_every_row_once() -> None:
    text = classification_markdown()
    for row in classification_table():
        assert text.count(f"`{row.name}`") == 1
    assert all(line.count("|") == 4 for line in text.splitlines())
