"""`tapster render`: the disk part that a hypervisor needs to use what tapster brings up.

Every disk that tapster serves is a raw block device behind its stable path, or where the settings say so a socket that
speaks NBD, whatever the image is, so that is all a hypervisor has to know. What else the definition says (bus
addresses, boot order) is for its author to carry over.
"""

import asyncio
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import quoteattr  # it writes XML and reads none  # nosec B406

from agent.bus.operator import BusError, operator
from agent.bus.topics import TopicError
from agent.cli.push_files import content, limits_of
from agent.definition import DocumentRejected, Finding, GuestDefinition, parse_domain, parse_file
from agent.fleet.census import take_census
from agent.fleet.order import RefusedError
from agent.fleet.targets import Selection
from agent.settings import Settings
from reconcilers.blktap.nodes import EXPORT
from reconcilers.reason import Reason
from reconcilers.spec import Backend, Device
from reconcilers.stable_path import StablePaths

Hypervisor = Literal["libvirt", "xl", "qemu", "cloud-hypervisor", "firecracker"]


@dataclass(frozen=True, slots=True)
class Drive:
    """One disk as a hypervisor sees it.

    Attributes, where their names do not say it:
        path: None for an empty cdrom or floppy drive.
        patience: Of a disk that is a socket, how many seconds to wait for another server; None for a block device.
    """

    target: str
    device: Device
    path: str | None
    read_only: bool
    shareable: bool
    direct_io: bool
    logical_block_size: int | None
    patience: int | None


def drives(guest: GuestDefinition, settings: Settings) -> list[Drive]:
    """The disks of a guest that can be served, with their stable paths below the runtime folder."""
    paths, blktap = StablePaths(settings.paths.runtime / "disks"), settings.blktap
    return [
        Drive(
            target=spec.key.target,
            device=spec.device,
            path=str(paths.path(spec.key)) if spec.source is not None else None,
            read_only=spec.read_only,
            shareable=spec.shareable,
            direct_io=spec.tuning.cache.direct,
            logical_block_size=spec.logical_block_size,
            patience=blktap.nbd_grace if blktap.gives_sockets and spec.backend is Backend.BLKTAP else None,
        )
        for disk in guest.disks
        if (spec := disk.spec) is not None
    ]


def run(to: Hypervisor, *, file: Path | None, guest: str | None, host: str, settings: Settings) -> int:
    """Print the disk part of one guest's configuration for a hypervisor.

    Args:
        to: The hypervisor.
        file: A definition with one guest; `-` is standard input.
        guest: Where there is no file: the guest whose definition is on the bus.
        host: Whose definition of the guest; its own counts before that of a group.
        settings: Which broker and which fleet, the agent's runtime folder, which the stable paths are below, and
            whether taps are sockets.

    Returns:
        0, or 1 when the definition can't be had or one of its disks was refused. What can be used of it is printed even
        so.
    """
    name = str(file) if file else f"guest {guest!r} of {host!r}"
    try:
        definition = _from_file(file, settings) if file else asyncio.run(_from_bus(guest or "", host, settings))
    except RefusedError as error:
        sys.stderr.write(f"tapster render: {error}\n")
        return 1
    except (BusError, TopicError, DocumentRejected) as error:
        sys.stderr.write(f"tapster render: {name}: {error}\n")
        return 1
    found = drives(definition, settings)
    left_out = [drive for drive in found if to in _NO_DRIVES and _removable(drive)]
    sockets = [drive for drive in found if to not in _SPEAK_NBD and drive.patience is not None]
    sys.stdout.write(_RENDERERS[to]([drive for drive in found if drive not in left_out + sockets]))
    for drive in left_out:
        sys.stderr.write(f"{name}: {to} has no {drive.device} drives; '{drive.target}' is left out\n")
    for drive in sockets:
        message = f"{to} does not speak NBD; '{drive.target}' is left out. Take nbd-socket out of blktap.devices"
        sys.stderr.write(f"{name}: {message}\n")
    findings = [finding for disk in definition.disks for finding in disk.refused]
    for finding in findings:
        sys.stderr.write(f"{name}:{finding.line}: {finding.reason}: {finding.message}\n")
    return 1 if findings or sockets else 0


def _from_file(file: Path, settings: Settings) -> GuestDefinition:
    guests = parse_file(content(file, settings), limits=limits_of(settings))
    if len(guests) != 1:
        message = f"it has {len(guests)} guests; give a file with one"
        raise DocumentRejected(Finding(Reason.NOT_A_DOMAIN, message, "/", None))
    return guests[0]


async def _from_bus(guest: str, host: str, settings: Settings) -> GuestDefinition:
    async with operator(settings) as op:
        census = await take_census(op, Selection(hosts=(host,)), [guest])
    document = census.in_force(host, guest)
    if document is None:
        raise BusError(
            "there is no document on the bus that the host would take, of its own or of one of its groups; see "
            "`tapster status` for the guests that there are"
        )
    if document.state == "absent":
        raise BusError("its document says absent, so it has no disks")
    return parse_domain(document.body, name=guest, limits=limits_of(settings))


def _removable(drive: Drive) -> bool:
    return drive.device in {Device.CDROM, Device.FLOPPY}


def libvirt(found: Sequence[Drive]) -> str:
    """`<disk>` elements (https://libvirt.org/formatdomain.html)."""
    return "".join(map(_libvirt_disk, found))


def _libvirt_disk(drive: Drive) -> str:
    name = "phy" if drive.target.startswith("xvd") else "qemu"
    cache = " cache='none'" if drive.direct_io else ""
    lines = [
        f"<disk type='{'block' if drive.patience is None else 'network'}' device='{drive.device}'>",
        f"  <driver name='{name}' type='raw'{cache}/>",
        _libvirt_source(drive),
        f"  <target dev='{drive.target}'/>",
        f"  <blockio logical_block_size='{drive.logical_block_size}'/>" if drive.logical_block_size else "",
        "  <readonly/>" if drive.read_only else "",
        "  <shareable/>" if drive.shareable else "",
        "</disk>",
    ]
    return "".join(f"{line}\n" for line in lines if line)


def _libvirt_source(drive: Drive) -> str:
    if drive.path is None:
        return ""
    if drive.patience is None:
        return f"  <source dev={quoteattr(drive.path)}/>"
    host = f"<host transport='unix' socket={quoteattr(drive.path)}/><reconnect delay='{drive.patience}'/>"
    return f"  <source protocol='nbd' name='{EXPORT}'>{host}</source>"


def xl(found: Sequence[Drive]) -> str:
    """A `disk` list (xl-disk-configuration(5))."""
    lines = [f"  {json.dumps(_xl_disk(drive), ensure_ascii=False)},\n" for drive in found]
    return "disk = [\n" + "".join(lines) + "]\n"


def _xl_disk(drive: Drive) -> str:
    access = "ro" if drive.read_only else "rw"
    parts = ["format=raw", f"vdev={drive.target}", f"access={access}"]
    if drive.path:
        parts.append("backendtype=phy")
    if drive.device is Device.CDROM:
        parts.append("devtype=cdrom")
    if drive.path:
        parts.append(f"target={drive.path}")  # takes the rest of the string, commas included: it stays last
    return ",".join(parts)


def qemu(found: Sequence[Drive]) -> str:
    """Arguments for a shell, one a line (qemu-system(1), `-blockdev` and `-device`)."""
    arguments = [argument for number, drive in enumerate(found) for argument in _qemu_arguments(number, drive)]
    return " \\\n".join(f"{option} {shlex.quote(json.dumps(value))}" for option, value in arguments) + "\n"


def _qemu_arguments(number: int, drive: Drive) -> list[tuple[str, dict[str, Any]]]:
    node = f"disk{number}"  # a node's name has 31 characters at most, a target 32
    device: dict[str, Any] = {"driver": _qemu_frontend(drive), "id": f"{node}-{drive.target}"}
    if drive.logical_block_size and not _removable(drive):
        device["logical_block_size"] = drive.logical_block_size
    if drive.path is None:
        return [("-device", device)]
    device["drive"] = node
    if drive.shareable:
        device["share-rw"] = True
    common = {"node-name": node, "read-only": drive.read_only, "cache": {"direct": drive.direct_io}}
    return [("-blockdev", common | _qemu_driver(drive)), ("-device", device)]


def _qemu_driver(drive: Drive) -> dict[str, Any]:
    if drive.patience is None:
        return {"driver": "host_device", "filename": drive.path}
    server = {"type": "unix", "path": drive.path}
    return {"driver": "nbd", "server": server, "export": EXPORT, "reconnect-delay": drive.patience}


def _qemu_frontend(drive: Drive) -> str:
    on_scsi = drive.target.startswith("sd")
    match drive.device:
        case Device.CDROM:
            return "scsi-cd" if on_scsi else "ide-cd"
        case Device.FLOPPY:
            return "floppy"
        case Device.LUN:
            return "scsi-block"
        case Device.DISK:
            return "scsi-hd" if on_scsi else "ide-hd" if drive.target.startswith("hd") else "virtio-blk-pci"


def cloud_hypervisor(found: Sequence[Drive]) -> str:
    """The `disks` of a VmConfig, for its HTTP API's `vm.create`.

    Without `image_type` it takes the format from what the guest has written to its first sector; a newer one refuses
    writes to that sector then.
    """
    disks = [
        {
            "id": drive.target,
            "path": drive.path,
            "image_type": "Raw",
            "readonly": drive.read_only,
            "direct": drive.direct_io,
        }
        for drive in found
    ]
    return json.dumps({"disks": disks}, indent=2) + "\n"


def firecracker(found: Sequence[Drive]) -> str:
    """The `drives` of a configuration file. The first disk is the root device, as Firecracker wants one named."""
    listed = [
        {
            "drive_id": re.sub(r"\W", "_", drive.target, flags=re.ASCII),
            "path_on_host": drive.path,
            "is_root_device": number == 0,
            "is_read_only": drive.read_only,
        }
        for number, drive in enumerate(found)
    ]
    return json.dumps({"drives": listed}, indent=2) + "\n"


_RENDERERS: dict[Hypervisor, Callable[[Sequence[Drive]], str]] = {
    "libvirt": libvirt,
    "xl": xl,
    "qemu": qemu,
    "cloud-hypervisor": cloud_hypervisor,
    "firecracker": firecracker,
}

_NO_DRIVES: frozenset[Hypervisor] = frozenset({"cloud-hypervisor", "firecracker"})
"""Hypervisors without drives whose medium can be changed."""

_SPEAK_NBD: frozenset[Hypervisor] = frozenset({"libvirt", "qemu"})
"""Hypervisors that take a disk that is a socket."""
