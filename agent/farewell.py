"""Take this host's disks down without a bus: what a purge of the package may be told to do, and nothing else does.

`python -m agent.farewell` says of each disk what became of it. One that somebody has open stays, as always, and images
are kept.
"""

import asyncio
import sys
from collections.abc import Iterator

from agent.host import abilities_of, host_of
from agent.settings import Settings, SettingsError, load
from reconcilers.blktap.abilities import starter_for
from reconcilers.errors import DiskError
from reconcilers.host import Host
from reconcilers.plan import Detach
from reconcilers.spec import DiskKey


async def take_down(settings: Settings) -> dict[DiskKey, str | None]:
    """Take down every disk that is there and that nobody uses.

    Returns:
        Why each disk is still there, or None for those that are gone.

    Raises:
        DiskError: An agent runs; its disks are its own.
    """
    abilities = await abilities_of(settings, starter_for(settings.paths.runtime))
    host = host_of(settings, abilities, on_change=lambda _key, _trigger: None)
    with host.owned_runtime():
        found, _ = await host.survey(set())
        outcome = {key: await _take_down(host, key) for key in sorted(found)}
    await host.close()
    return outcome


async def _take_down(host: Host, key: DiskKey) -> str | None:
    try:
        attached = await host.attached(key)
        if attached is None:
            return "its device is not this agent's"
        await host.apply(Detach(attached), key)
    except DiskError as error:
        return str(error)
    return None


def _sentences(outcome: dict[DiskKey, str | None]) -> Iterator[str]:
    for key, why in outcome.items():
        yield f"{key} stays: {why}" if why else f"{key} is down"


def main() -> int:
    """0 if every disk is down, 1 if one is left."""
    try:
        outcome = asyncio.run(take_down(load()))
    except (SettingsError, DiskError) as error:
        sys.stderr.write(f"tapster: disks stay as they are: {error}\n")
        return 1
    for sentence in _sentences(outcome):
        sys.stdout.write(f"tapster: {sentence}\n")
    return 1 if any(outcome.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
