"""This host as the settings mean it: what it can do, and its disks."""

from collections.abc import Callable

from agent.settings import Settings
from reconcilers.abilities import HostAbilities, probe
from reconcilers.host import Host
from reconcilers.jail.launcher import Starter
from reconcilers.spec import DiskKey
from reconcilers.tag import instance_id
from reconcilers.trigger import Trigger


async def abilities_of(settings: Settings, starter: Starter) -> HostAbilities:
    """What this host can do now, of that which the settings allow.

    Args:
        settings: The agent's.
        starter: From `starter_for`.

    Raises:
        DiskError: As `probe`.
    """
    blktap = settings.blktap
    return await probe(blktap.servers, blktap.devices, frozenset(blktap.formats), blktap.jail, starter)


def host_of(settings: Settings, abilities: HostAbilities, *, on_change: Callable[[DiskKey, Trigger], None]) -> Host:
    """The host's disks as these settings mean them. Nothing is touched yet."""
    return Host(
        settings.paths.runtime,
        instance_id(settings.fleet, settings.host, str(settings.paths.runtime)),
        abilities,
        settings.images.allowed(settings.paths),
        server_patience=settings.blktap.start_timeout,
        nbd_grace=settings.blktap.nbd_grace,
        socket_group=settings.blktap.socket_group,
        on_change=on_change,
    )
