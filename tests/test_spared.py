"""An agent leaves out libraries that it has no use for."""

import json
import subprocess
import sys

from agent.cli.spared import spared

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


def test_what_is_loaded_stays_loaded() -> None:
    with spared("json"):
        assert sys.modules["json"] is json
    assert sys.modules["json"] is json
