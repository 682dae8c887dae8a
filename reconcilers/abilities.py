"""What this host can do, found out at the start and again where something lacks."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reconcilers.blktap.abilities import TapAbilities, probe_taps
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.errors import DiskError
from reconcilers.jail.launcher import Starter
from reconcilers.jail.profile import Jail
from reconcilers.kernel_parts import ENOUGH, why_no_loop, why_unfit
from reconcilers.openat2 import why_not
from reconcilers.reason import Reason
from reconcilers.spec import Backend, Format


@dataclass(frozen=True, slots=True)
class HostAbilities:
    """What this host can do.

    Attributes:
        missing: Why a backend is not available, for those that are not.
        taps: What can be had of blktap.
        kernel: The kernel's release.
    """

    missing: Mapping[Backend, str]
    taps: TapAbilities
    kernel: str

    @property
    def backends(self) -> tuple[Backend, ...]:
        """The backends that work here."""
        return tuple(backend for backend in Backend if backend not in self.missing)

    @property
    def formats(self) -> frozenset[Format]:
        """What can be opened."""
        return self.taps.formats | {Format.RAW}

    def exceeds(self, other: "HostAbilities") -> bool:
        """Whether it is all that the other is, and more."""
        return _parts(self) > _parts(other)


async def probe(
    servers: Sequence[ServerKind],
    devices: Sequence[DeviceKind],
    formats: frozenset[Format],
    jail: Jail,
    starter: Starter,
) -> HostAbilities:
    """Find out what this host can do. Opens the kernel's control nodes and asks the servers for their versions.

    Args:
        servers: The tap servers that the settings allow, the preferred first.
        devices: The ways to a tap's device that they allow, the preferred first.
        formats: Image formats that they may serve.
        jail: Whether a server may run where its jail lacks a piece.
        starter: From `starter_for`; whoever is done with the abilities closes it.

    Raises:
        DiskError: BackendUnavailable if no disk at all can be brought up safely.
    """
    if problem := why_not():
        message = f"{problem}, so images can't be opened safely; use {ENOUGH}, and allow the call in a container"
        raise DiskError(Reason.BACKEND_UNAVAILABLE, message)
    taps = await probe_taps(servers, devices, formats, jail, starter)
    unfit = why_unfit()  # disks that are up stay, but none is brought up
    lacking = {Backend.LOOP: unfit or why_no_loop(), Backend.BLKTAP: unfit or taps.missing, Backend.BLOCK: unfit}
    missing = {backend: why for backend, why in lacking.items() if why}
    return HostAbilities(missing=missing, taps=taps, kernel=platform.release())


def _parts(abilities: HostAbilities) -> frozenset[Backend | ServerKind | DeviceKind | Format]:
    return frozenset((*abilities.backends, *abilities.taps.servers, *abilities.taps.devices, *abilities.formats))
