"""The grammar of `tap-ctl list`: every field may be absent, and a path may hold anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconcilers.blktap.tapdisk.listing import Entry, State, parse

NUMBERS = st.none() | st.integers(0, 99999)
STATES = st.none() | st.integers(0, 0x3FF).map(State)
TEXT = st.text(st.characters(exclude_characters="\n", codec="utf-8"))
ARGS = st.none() | st.tuples(st.text("abcdhiov2q", min_size=1), TEXT)
ENTRIES = st.builds(Entry, NUMBERS, NUMBERS, STATES, ARGS)


def printed(entry: Entry) -> str:
    """As tap-ctl prints it."""
    fields = []
    if entry.pid is not None:
        fields.append(f"pid={entry.pid}")
    if entry.minor is not None:
        fields.append(f"minor={entry.minor}")
    if entry.state is not None:
        fields.append(f"state={entry.state:#x}" if entry.state else "state=0")
    if entry.args is not None:
        fields.append("args={}:{}".format(*entry.args))
    return " ".join(fields) + "\n"


@given(st.lists(ENTRIES))
def test_what_is_printed_is_read_back(entries: list[Entry]) -> None:
    assert parse("".join(map(printed, entries))) == entries


@given(st.text())
def test_no_output_is_too_strange(output: str) -> None:
    parse(output)


@given(st.lists(ENTRIES), st.text())
def test_a_path_with_newlines_alters_no_line_before_it(entries: list[Entry], path: str) -> None:
    before = "".join(map(printed, entries))
    forged = parse(f"{before}pid=1 minor=2 state=0 args=aio:{path}\n")
    assert forged[: len(entries)] == entries
    assert (forged[len(entries)].pid, forged[len(entries)].minor) == (1, 2)


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("pid=4711 minor=0 state=0 args=aio:/srv/a.img", Entry(4711, 0, State.RUNS, ("aio", "/srv/a.img"))),
        ("pid=4711 minor=3 state=0x2a args=vhd:/x y=z:q", Entry(4711, 3, State(0x2A), ("vhd", "/x y=z:q"))),
        ("minor=7", Entry(minor=7)),
        ("pid=12", Entry(pid=12)),
        ("pid=12 minor=1 state=0x2", Entry(12, 1, State.CLOSED)),
        ("", Entry()),
    ],
)
def test_lines_that_the_real_one_prints(line: str, entry: Entry) -> None:
    assert parse(line + "\n") == [entry]
