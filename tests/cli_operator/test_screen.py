"""The full screen of `tapster watch`: what keys do, what is shown, and the real thing on a terminal."""

import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from agent.bus.topics import FleetTopics, Topics
from agent.cli.screen import View, page_of, render
from agent.fleet.view import Fleet
from agent.settings import Settings
from agent.status import AgentState, Phase
from reconcilers.reason import Reason
from tests.cli_operator.fake_host import Put, birth, disk, guest


def fleet() -> Fleet:
    found = Fleet(FleetTopics("lab"))
    found.hosts = {"db1": AgentState.model_validate_json(birth()), "db2": AgentState.model_validate_json(birth("lost"))}
    up, failed = disk("vda", Phase.UP), disk("vdb", Phase.FAILED, Reason.IMAGE_MISSING, "gone")
    found.guests = {
        ("db1", "web"): guest(up, failed, name="web"),
        ("db2", "mail"): guest(disk("vda", Phase.PENDING), name="mail", host="db2"),
    }
    return found


def keys(view: View, *pressed: str) -> View:
    for key in pressed:
        after = view.press(key, 10)
        assert after is not None
        view = after
    return view


def lines(view: View) -> list[tuple[str, str]]:
    return [(row.status.guest, row.disk.target if row.disk else "-") for row in view.rows(fleet())]


LEFT, RIGHT, DOWN, UP, ESCAPE = "\x1b[D", "\x1b[C", "\x1b[B", "\x1b[A", "\x1b"


def test_the_worst_comes_first_and_keys_sort_and_filter() -> None:
    view = View()
    assert lines(view) == [("web", "vdb"), ("mail", "vda"), ("web", "vda")]
    assert lines(keys(view, "r")) == [("web", "vda"), ("mail", "vda"), ("web", "vdb")]
    assert keys(view, LEFT, LEFT).sort == "guest"
    assert lines(keys(view, LEFT, LEFT)) == [("mail", "vda"), ("web", "vda"), ("web", "vdb")]
    assert keys(view, LEFT, LEFT, LEFT, LEFT).sort == "why"
    assert lines(keys(view, "t")) == [("web", "vdb"), ("mail", "vda")]
    assert lines(keys(view, "/", *"MAIx", "\x7f", "\r")) == [("mail", "vda")]
    assert keys(view, "/", "q", "\r", "t", ESCAPE) == view
    assert view.press("q", 10) is None
    assert keys(view, UP).top == 0
    assert keys(view, DOWN, "j", " ").top == 12


def drawn(view: View, height: int = 24) -> str:
    out = Console(width=110, height=height, force_terminal=False)
    with out.capture() as captured:
        out.print(render(fleet(), view, height))
    return captured.get()


def test_the_screen_has_all_that_fits_and_no_more() -> None:
    text = drawn(View())
    assert "2 hosts: 1 lost 1 online · 3 disks: 1 Failed 1 Pending 1 Up" in text
    assert "PHASE▼" in text
    assert "1-3 of 3 lines" in text
    assert "q quit" in text
    small = drawn(View(top=2), height=6)
    assert page_of(6) == 2
    assert "2-3 of 3 lines" in small
    assert len(small.splitlines()) == 6
    assert "nothing to show · trouble only · filter: zz█" in drawn(View(text="zz", typing=True, trouble=True))


def test_on_a_terminal_keys_work_and_q_gives_the_terminal_back(settings: Settings, put: Put, tmp_path: Path) -> None:
    (tmp_path / "tapster.toml").write_text(f'host = "h"\nfleet = "lab"\nbroker.port = {settings.broker.port}\n')
    for name in ("db1", "db2"):
        put(Topics("lab", name).agent, birth())
        put(Topics("lab", name).status("vm1"), guest(disk("vda", Phase.UP), host=name).model_dump_json().encode())
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="120", LINES="20")
        words = ["-c", "from agent.cli.app import main; main()", "watch", "--config", f"{tmp_path}/tapster.toml"]
        os.execv(sys.executable, [sys.executable, *words])
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < deadline, seen[-2000:]
            if select.select([terminal], [], [], 0.5)[0]:
                seen += os.read(terminal, 65536).decode("utf-8", "replace")

    until("1-2 of 2 lines")
    assert "\x1b[?1049h" in seen, "the screen is another one than the shell's"
    os.write(terminal, b"/db2\r")
    until("1-1 of 1 line ")
    until("filter: db2")
    os.write(terminal, b"q")
    with pytest.raises(OSError, match="Input/output error"):  # what a terminal says whose other end is closed
        until("nothing that comes")
    assert "\x1b[?1049l" in seen
    assert os.waitpid(child, 0)[1] == 0
    os.close(terminal)
