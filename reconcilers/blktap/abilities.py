"""What this host can do for taps: which servers it has, what they open, how a device is made."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reconcilers.blktap import storage_daemon
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.blktap.nbd.devices import why_not as nbd_lacks
from reconcilers.blktap.server import TapServer
from reconcilers.blktap.storage_daemon import StorageDaemon
from reconcilers.blktap.tapdisk.probe import probe_tapdisk
from reconcilers.blktap.tapdisk.server import Tapdisk
from reconcilers.errors import DiskError
from reconcilers.jail.launcher import Launcher, Starter
from reconcilers.jail.profile import Jail
from reconcilers.kernel_parts import unopenable, why_no_loop
from reconcilers.reason import Reason
from reconcilers.spec import DiskSpec, Format


@dataclass(frozen=True, slots=True)
class TapAbilities:
    """The servers and ways to a device that work here and that the settings allow, the preferred ones first.

    Attributes:
        servers: Each with what it is asked through.
        devices: Never empty unless there is something `missing`.
        formats: What the settings allow of that which the servers open.
        missing: Why there can be no tap, and what to do about it; None if there can.
        starter: What starts servers.
        jail: What the settings say about hosts that can't give a server the whole jail.
        jail_lacks: What of the jail this host can't give, each piece with the reason.
        relay: What stands in front of a tapdisk for a FUSE export; None where the host lacks it.
    """

    servers: Mapping[ServerKind, TapServer]
    devices: tuple[DeviceKind, ...]
    formats: frozenset[Format]
    missing: str | None
    starter: Starter
    jail: Jail
    jail_lacks: tuple[str, ...] = ()
    relay: StorageDaemon | None = field(default=None)

    def choose(self, spec: DiskSpec) -> tuple[ServerKind, DeviceKind]:
        """The server and the device of a new tap: the first server that can serve it, and the first device over that.

        Raises:
            DiskError: FormatUnsupported, with what each server lacks.
        """
        lacking: list[str] = []
        for kind, server in self.servers.items():
            why = server.lacks(spec)
            if why is None:
                return kind, self._device_over(kind)
            lacking.append(f"{kind} lacks {why}")
        message = f"no server that blktap.servers names can serve {spec.key}: {', '.join(lacking)}"
        raise DiskError(Reason.FORMAT_UNSUPPORTED, message)

    def _device_over(self, server: ServerKind) -> DeviceKind:
        """A tapdisk speaks NBD by itself; what makes a FUSE export of that is another program, which may lack."""
        speaks_fuse = server is not ServerKind.TAPDISK or self.relay
        return next(kind for kind in self.devices if kind is not DeviceKind.FUSE_LOOP or speaks_fuse)

    def every_server(self) -> dict[ServerKind, TapServer]:
        """One of each kind: a tap that is there is asked and stopped whatever the settings say by now."""
        daemon = self.relay or StorageDaemon(storage_daemon.PROGRAM, self.starter, self.jail)
        return {
            ServerKind.TAPDISK: Tapdisk(frozenset(), daemon, self.starter),
            ServerKind.STORAGE_DAEMON: daemon,
            **self.servers,
        }


async def probe_taps(
    servers: Sequence[ServerKind],
    devices: Sequence[DeviceKind],
    formats: frozenset[Format],
    jail: Jail,
    starter: Starter,
) -> TapAbilities:
    """Find out what can be had.

    Args:
        servers: What the settings allow, the preferred first.
        devices: The ways to a device that they allow, the preferred first.
        formats: Image formats that may be served.
        jail: Whether a server may run where its jail lacks a piece.
        starter: From `starter_for`.
    """
    if not servers:
        return TapAbilities({}, (), frozenset(), "the settings allow no server (blktap.servers)", starter, jail)
    version = await storage_daemon.version()
    jail_lacks = await storage_daemon.lacking(starter, DeviceKind.FUSE_LOOP) if version else ()
    unjailed = _unjailed(jail_lacks) if jail is Jail.REQUIRE else None
    daemon = StorageDaemon(version, starter, jail) if version and not unjailed else None
    jailed = daemon is not None and jail is Jail.REQUIRE
    lacks = {kind: await _why_no_taps_over(kind, starter, jailed=jailed) for kind in devices}
    usable = tuple(kind for kind in devices if not lacks[kind])
    no_device = None if usable else "; ".join(filter(None, lacks.values())) or "the settings allow no device"
    found: dict[ServerKind, TapServer] = {}
    lacking: list[str] = []
    for kind in servers:
        match kind:
            case ServerKind.STORAGE_DAEMON if daemon:
                found[kind] = daemon
            case ServerKind.STORAGE_DAEMON if unjailed:
                lacking.append(unjailed)
            case ServerKind.STORAGE_DAEMON:
                program = storage_daemon.PROGRAM
                lacking.append(
                    f"{program} is not installed; `apt-get install qemu-utils`, on Debian 12 qemu-system-common"
                )
            case ServerKind.TAPDISK:
                tapdisk, why = await probe_tapdisk(formats, daemon, starter)
                why = why or (_why_no_tapdisk_over(usable, daemon) if tapdisk else None)
                if why:
                    lacking.append(why)
                elif tapdisk:
                    found[kind] = tapdisk
    missing = no_device or (None if found else "; ".join(lacking))
    opened = frozenset(fmt for server in found.values() for fmt in server.formats)
    return TapAbilities(
        servers=found,
        devices=usable,
        formats=frozenset() if missing else opened & formats,
        missing=missing,
        starter=starter,
        jail=jail,
        jail_lacks=jail_lacks,
        relay=daemon,
    )


async def _why_no_taps_over(kind: DeviceKind, starter: Starter, *, jailed: bool) -> str | None:
    """Why no tap has a device of a kind; None if one can.

    A server that mounts nothing has another jail, which may lack what that of a FUSE export does not need.
    """
    if (why := why_no_device(kind)) or not jailed or kind is DeviceKind.FUSE_LOOP:
        return why
    return _unjailed(await storage_daemon.lacking(starter, kind))


def _why_no_tapdisk_over(devices: Sequence[DeviceKind], relay: StorageDaemon | None) -> str | None:
    if DeviceKind.NBD_SOCKET in devices:
        return "tapdisk can't tell whether a hypervisor is connected to its socket, so none is given it"
    if DeviceKind.NBD in devices or relay:
        return None
    return "tapdisk needs the kernel's nbd, or qemu-storage-daemon in front of it"


def starter_for(runtime: Path) -> Starter:
    """What starts servers for the agent of a runtime folder.

    Units where systemd has made the runtime folder (systemd.exec(5)), as theirs names it; else session leaders.
    """
    if os.environ.get("RUNTIME_DIRECTORY") != str(runtime):
        return Launcher()
    from reconcilers.jail.units import UnitStarter  # noqa: PLC0415 - D-Bus takes its time to load
    from reconcilers.systemd import Systemd  # noqa: PLC0415

    return UnitStarter(runtime, Systemd())


def _unjailed(lacks: Sequence[str]) -> str | None:
    """Why there is no storage daemon although it is installed; None if nothing lacks."""
    if not lacks:
        return None
    return (
        f"this host can't jail a storage daemon ({'; '.join(lacks)}); mend that, or accept servers with less around "
        f'them by blktap.jail = "{Jail.BEST_EFFORT}"'
    )


def why_no_device(kind: DeviceKind) -> str | None:
    """Why this host has no device of a kind, and what to do about it; None if it has."""
    if kind is DeviceKind.NBD_SOCKET:
        return None
    if kind is DeviceKind.NBD:
        return nbd_lacks()
    if problem := why_no_loop():
        return problem
    if problem := unopenable("/dev/fuse"):
        return f"{problem}; load it with `modprobe fuse`"
    return None
