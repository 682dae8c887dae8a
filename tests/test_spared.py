"""An agent leaves out libraries that it has no use for."""

import json
import os
import subprocess
import sys
from pathlib import Path

from agent.cli.spared import spared
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
