"""The word that zsh completes, where it is an option with its value: `--host=db1`.

What is offered are values, and zsh compares them with the whole word unless it is told to step over the option first
(zshcompwid(1), compset).
"""

import re
import sys
from collections.abc import Mapping

_OPTION = re.compile(r"--[a-z-]+=")  # nothing else of what was typed goes into what zsh evaluates


def step_over_option(environment: Mapping[str, str]) -> None:
    """Tell zsh to, before what is offered; does nothing in a process that zsh has not called for completion."""
    if environment.get("_TAPSTER_COMPLETE") != "complete_zsh":
        return
    word = environment.get("_TYPER_COMPLETE_ARGS", "").rpartition(" ")[2]
    if option := _OPTION.match(word):
        sys.stdout.write(f"compset -P '{option[0]}';\n")
