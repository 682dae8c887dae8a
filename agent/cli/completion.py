"""What the shell offers when names are completed: hosts, labels, groups, guests and rollouts, as the bus has them now.

Nothing is imported here before it is needed, as in all that every call of `tapster` reads.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from agent.fleet.names import Kind


def hosts(ctx: typer.Context, incomplete: str) -> list[str]:
    """Hosts that have ever said that they are there."""
    return _beginning(incomplete, _on_bus("host", ctx))


def labels(ctx: typer.Context, incomplete: str) -> list[str]:
    """Conditions on labels that some host satisfies, behind those that stand there already."""
    from agent.fleet.names import labels_on_bus
    from agent.fleet.selector_offers import offers

    return offers(incomplete, labels_on_bus(config=_config(ctx)))


def groups(ctx: typer.Context, incomplete: str) -> list[str]:
    """Groups that hosts are in, or that documents stand for."""
    return _beginning(incomplete, _on_bus("group", ctx))


def guests(ctx: typer.Context, incomplete: str) -> list[str]:
    """Guests that documents stand for: on the hosts that were named before, or on any, and in groups."""
    return _beginning(incomplete, _on_bus("guest", ctx))


def named(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the kind that was given before them: hosts, or guests."""
    kind: Kind = "host" if str(ctx.params.get("kind")).startswith("host") else "guest"
    return _beginning(incomplete, _on_bus(kind, ctx))


def rollouts(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Every rollout that the bus knows, and where it stands."""
    return [(name, phase) for name, phase in _on_bus("rollout", ctx).items() if name.startswith(incomplete)]


def open_rollouts(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Rollouts that have not come to their end."""
    from agent.rollout.record import ENDED

    return [(name, phase) for name, phase in rollouts(ctx, incomplete) if phase not in ENDED]


def resting_rollouts(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Rollouts that are not under way."""
    from agent.rollout.record import UNDER_WAY

    return [(name, phase) for name, phase in rollouts(ctx, incomplete) if phase not in UNDER_WAY]


def kinds(incomplete: str) -> list[str]:
    """What `tapster get` lists."""
    from agent.cli.get import KINDS

    return _beginning(incomplete, sorted(KINDS))


def phases(incomplete: str) -> list[str]:
    """Phases of disks and guests."""
    from agent.status import Phase

    return _beginning(incomplete, Phase)


def event_types(incomplete: str) -> list[str]:
    """Types of events, without what all of them begin with."""
    from agent.events import EventType

    return _beginning(incomplete, (one.removeprefix("tapster.") for one in EventType))


def guests_here(ctx: typer.Context, incomplete: str) -> list[str]:
    """Guests whose disks are up on this host."""
    return _beginning(incomplete, _in_runtime(ctx, "disks"))


def targets_here(ctx: typer.Context, incomplete: str) -> list[str]:
    """Disks of the guest that was given before them, as far as they are up on this host."""
    return _beginning(incomplete, _in_runtime(ctx, "disks", str(ctx.params.get("guest"))))


def _in_runtime(ctx: typer.Context, *folders: str) -> list[str]:
    from agent.settings import SettingsError, load

    with suppress(SettingsError, OSError):
        found = load(_config(ctx)).paths.runtime.joinpath(*folders).iterdir()
        return sorted(path.name for path in found if path.name[0] != ".")  # a link on its way to its place
    return []


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _on_bus(kind: "Kind", ctx: typer.Context) -> dict[str, str]:
    from agent.fleet.names import names_on_bus

    given = ctx.params.get("host") or ()
    return names_on_bus(kind, config=_config(ctx), hosts=[given] if isinstance(given, str) else given)


def _config(ctx: typer.Context) -> Path | None:
    config = ctx.params.get("config")
    return Path(config) if config else None
