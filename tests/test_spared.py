"""An agent leaves out libraries that it has no use for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli.spared import put_off, spared
from tests.workbench import AGENT

START = """
import sys
from agent.cli.spared import spared
with spared("rich"):
    import agent.cli.run
assert "structlog" in sys.modules
assert not any(name.partition(".")[0] == "rich" for name in sys.modules)
import rich.table
"""


def test_an_agent_starts_without_tables_and_colours_and_a_command_has_them() -> None:
    subprocess.run([sys.executable, "-c", START], check=True)


def test_no_command_looks_for_plugins_that_others_brought(tmp_path: Path) -> None:
    (tmp_path / "foreign.py").write_text("raise SystemExit('a plugin was loaded')\n")
    metadata = tmp_path / "foreign-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[pydantic]\nforeign = foreign\n")
    subprocess.run([*AGENT, "schema"], check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})


def test_what_is_loaded_stays_loaded() -> None:
    with spared("json"):
        assert sys.modules["json"] is json
    assert sys.modules["json"] is json


TYPERS_OWN = (sys.executable, "-c", "from agent.cli.app import app; app()")
PUT_OFF = """
import sys
from agent.cli.spared import put_off
with put_off("rich.markdown", "rich.table"):
    from rich.markdown import Markdown
    from rich.table import Table
    def shown(text: Markdown | str) -> Table: ...
assert not {"rich.markdown", "rich.table", "markdown_it"} & sys.modules.keys()
assert Markdown("*now*").markup == "*now*"
assert "markdown_it" in sys.modules
import rich.markdown
assert rich.markdown.Markdown is not Markdown
"""


def help_of(command: tuple[str, ...], *words: str, **more: str) -> tuple[str, str]:
    environment = {**os.environ, "COLUMNS": "100", "FORCE_COLOR": "1", **more}
    result = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False)
    return result.stdout, result.stderr


@pytest.mark.parametrize("words", [(), ("--help",), ("push", "--help"), ("rollout", "--help"), ("grow", "--halp")])
def test_help_is_what_typer_shows_by_itself(words: tuple[str, ...]) -> None:
    assert help_of(AGENT, *words) == help_of(TYPERS_OWN, *words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_offered_what_typer_offers_by_itself(shell: str) -> None:
    asked = {
        "_TAPSTER_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "tapster r",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": "tapster\nr",
        "COMP_CWORD": "1",
    }
    named = "import sys; sys.argv[0] = 'tapster'; "
    ours, typers = (help_of((python, flag, named + code), **asked) for python, flag, code in (AGENT, TYPERS_OWN))
    assert "rollout" in ours[0]
    assert ours == typers


def test_help_is_shown_without_loading_what_it_does_not_show() -> None:
    loaded = help_of((sys.executable, "-X", "importtime", *AGENT[1:]), "--help")[1]
    assert "typer.rich_utils" in loaded
    assert not [word for word in ("markdown_it", "pygments", "rich.traceback") if word in loaded]


def test_what_is_put_off_is_loaded_when_something_of_it_is_made() -> None:
    subprocess.run([sys.executable, "-c", PUT_OFF], check=True)


def test_what_is_loaded_is_not_put_off() -> None:
    with put_off("json"):
        assert sys.modules["json"] is json
    assert sys.modules["json"] is json
