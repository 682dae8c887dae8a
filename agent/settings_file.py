"""The commented settings file, written from the model so that the two can't drift apart.

`python -m agent.settings_file > deploy/tapster.toml` writes it anew; a test compares.
"""

import json
import sys
import textwrap
from collections.abc import Iterator

from pydantic import BaseModel

from agent.options import Option, section_of
from agent.settings import Settings

_WIDTH = 108
_HEAD = """\
Settings of the tapster agent, which reads /etc/tapster/tapster.toml or what --config or TAPSTER_CONFIG names.

Every option stands here, commented out, with its default or, where it has none, an example. An unknown key or a
wrong value keeps the agent from starting and is named. The environment wins over the file: TAPSTER_, the section,
two underscores, the option, as in TAPSTER_BROKER__PORT=8883. Lists are comma-separated there, labels are written
site=ams,rack=12."""


def render() -> str:
    """The whole file, as TOML with comments."""
    head = (f"# {line}".rstrip() for line in _HEAD.splitlines())
    return "\n".join([*head, *_section(Settings, ())]) + "\n"


def _section(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[str]:
    """A section's own options, then the sections within it, as TOML wants them."""
    for name, field in model.model_fields.items():
        if section_of(field) is None:
            yield from _entry(Option((*path, name), field))
    for name, field in model.model_fields.items():
        if section := section_of(field):
            yield from ("", "", f"[{'.'.join((*path, name))}]  # {field.description}")
            yield from _section(section, (*path, name))


def _entry(option: Option) -> Iterator[str]:
    """An option: what it does, what it may be, and the line to uncomment."""
    default = None if option.field.default_factory else option.field.get_default()
    allowed = option.allowed[0].upper() + option.allowed[1:]
    notes = [option.field.description or "", f"{allowed}."]
    if default is None:
        (default,) = option.field.examples or [None]
        notes[1] += " Not set by default; for example:"
    yield ""
    yield from (f"# {line}" for note in notes for line in textwrap.wrap(note, _WIDTH, break_on_hyphens=False))
    yield f"#{option.path[-1]} = {json.dumps(default, default=str)}"


if __name__ == "__main__":
    sys.stdout.write(render())
