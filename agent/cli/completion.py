"""What the shell offers when names are completed: hosts, groups and guests, as the bus has them at the moment.

Nothing is imported here before it is needed, as in all that every call of `tapster` reads.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from agent.fleet.names import Kind


def hosts(ctx: typer.Context, incomplete: str) -> list[str]:
    """Hosts that have ever said that they are there."""
    return _offered("host", ctx, incomplete)


def groups(ctx: typer.Context, incomplete: str) -> list[str]:
    """Groups that hosts are in, or that documents stand for."""
    return _offered("group", ctx, incomplete)


def guests(ctx: typer.Context, incomplete: str) -> list[str]:
    """Guests that documents stand for: on the hosts that were named before, or on any, and in groups."""
    return _offered("guest", ctx, incomplete)


def named(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the kind that was given before them: hosts, or guests."""
    return _offered("host" if str(ctx.params.get("kind")).startswith("host") else "guest", ctx, incomplete)


def _offered(kind: "Kind", ctx: typer.Context, incomplete: str) -> list[str]:
    from agent.fleet.names import names_on_bus

    config, given = ctx.params.get("config"), ctx.params.get("host") or ()
    found = names_on_bus(
        kind, config=Path(config) if config else None, hosts=[given] if isinstance(given, str) else given
    )
    return [name for name in found if name.startswith(incomplete)]
