"""libvirt domain XML into guest definitions (https://libvirt.org/formatdomain.html)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from lxml import etree

from agent.definition.backing import ends_here, layers
from agent.definition.classification import STRUCTURE, TABLE, Handling
from agent.definition.disk import OWN_DOMAINS, PLAIN_SCRIPTS, define
from agent.definition.document import line_of
from agent.definition.model import DiskDefinition, DocumentRejected, Finding, GuestDefinition, Limits
from agent.definition.text import Claim, DiskText
from reconcilers.reason import Reason
from reconcilers.spec import GUEST_NAME

_SNAPSHOTS = frozenset({"domainsnapshot", "domaincheckpoint", "domainbackup"})
"""Roots that hold a domain as it was, not as it should be."""

_HARMLESS: dict[str, Callable[["etree._Element"], bool]] = {
    "backingStore": ends_here,
    "backenddomain": lambda child: child.get("name", "dom0") in OWN_DOMAINS,
    "script": lambda child: child.get("path", "").rpartition("/")[2] in PLAIN_SCRIPTS,
}
"""When an element of a refused kind says no more than its absence would."""

_DRIVER_PLACES = {
    "@driver": Reason.UNKNOWN_DRIVER,
    "driver/@name": Reason.UNKNOWN_DRIVER,
    "driver/@type": Reason.UNKNOWN_FORMAT,
    "driver/@backend": Reason.UNKNOWN_FORMAT,
}
"""Attributes that name a driver or a format, and the reason for a word there that is not known."""


def domains_in(root: "etree._Element") -> list["etree._Element"]:
    """The `<domain>` elements of a file: the root itself, or its children (`<domains>`, libvirt's `<domstatus>`)."""
    if root.tag == "domain":
        return [root]
    return [] if root.tag in _SNAPSHOTS else root.findall("domain")


def guest_from(domain: "etree._Element", *, name: str | None, limits: Limits) -> GuestDefinition:
    """Read one `<domain>`.

    Args:
        domain: The element; nothing but `./name` and `./devices/disk` is looked at.
        name: What the guest is called elsewhere; may stand in for a missing `<name>`.
        limits: `max_disks` is checked here.

    Raises:
        DocumentRejected: NotADomain, InvalidName, NameMismatch, TooManyDisks: all that apply.
    """
    if domain.tag != "domain":
        message = f"the root element is <{domain.tag}>, not <domain>; send what `virsh dumpxml GUEST` prints"
        raise DocumentRejected(Finding(Reason.NOT_A_DOMAIN, message, f"/{domain.tag}", line_of(domain)))
    said = domain.find("name")
    place = Claim((said.text or "").strip() if said is not None else "", "/domain/name", line_of(domain))
    if said is not None:
        place = place._replace(line=line_of(said))
    elements = domain.findall("devices/disk")
    findings = [*name_findings(place, name), *count_findings(len(elements), limits, "/domain/devices")]
    guest = place.text or name or ""
    if findings:
        raise DocumentRejected(*findings, guest=guest if GUEST_NAME.fullmatch(guest) else None)
    disks = [
        define(_disk_text(element, position, limits.max_layers), guest=guest)
        for position, element in enumerate(elements, 1)
    ]
    return GuestDefinition(name=guest, disks=without_duplicates(disks, "/domain/devices/disk[{}]/target/@dev"))


def name_findings(said: Claim, expected: str | None) -> Iterable[Finding]:
    """What is wrong with a guest's name. An absent one is fine when another place gives it."""
    name = said.text or expected or ""
    if not name:
        message = "the definition has no name; give the guest one"
        yield Finding(Reason.INVALID_NAME, message, said.path, said.line)
    elif not GUEST_NAME.fullmatch(name):
        message = f"the name {name[:140]!r} can't be a folder and a topic level; {Reason.INVALID_NAME.remedy}"
        yield Finding(Reason.INVALID_NAME, message, said.path, said.line)
    elif expected is not None and name != expected:
        message = (
            f"the document is for guest {expected!r} and its name is {name!r}; publish it on the topic of {name!r}, "
            "or mend the name"
        )
        yield Finding(Reason.NAME_MISMATCH, message, said.path, said.line)


def count_findings(disks: int, limits: Limits, path: str) -> Iterable[Finding]:
    """Whether a guest has more disks than the limit."""
    if disks > limits.max_disks:
        message = f"the definition has {disks} disks and the limit is {limits.max_disks}; split the guest"
        yield Finding(Reason.TOO_MANY_DISKS, message, path, None)


def without_duplicates(disks: Iterable[DiskDefinition], path: str) -> tuple[DiskDefinition, ...]:
    """Refuse every disk whose target another disk has too; `path` says where disk `{}` names its target.

    All of them and not only the later ones: nothing tells which one the operator means, and the wrong choice would
    put another image under a running guest. What is attached stays as it is until the definition is clear.
    """
    disks = tuple(disks)
    positions: dict[str | None, list[int]] = {}
    for position, disk in enumerate(disks, 1):
        positions.setdefault(disk.target, []).append(position)
    if len(positions) == len(disks):
        return disks
    return tuple(
        disk
        if disk.target is None or len(positions[disk.target]) == 1
        else _refused_as_duplicate(disk, positions[disk.target], path.format(position))
        for position, disk in enumerate(disks, 1)
    )


def _refused_as_duplicate(disk: DiskDefinition, positions: list[int], path: str) -> DiskDefinition:
    numbers = " and ".join(map(str, positions))
    message = f"disks {numbers} have the same target '{disk.target}'; give each its own"
    finding = Finding(Reason.DUPLICATE_TARGET, message, path, disk.line)
    return replace(disk, refused=(*disk.refused, finding), spec=None)


def _disk_text(disk: "etree._Element", position: int, max_layers: int) -> DiskText:
    """Everything that one `<disk>` element says. The first `<source>`, `<driver>` and `<target>` count."""
    base = f"/domain/devices/disk[{position}]"
    text = DiskText(place=Claim("", base, line_of(disk)))
    first: dict[str, etree._Element] = {}
    for child in disk:
        first.setdefault(child.tag, child)
    said: dict[str, Claim] = {}
    _classify(text, said, disk, base)
    text.type = said.get("@type")
    text.device = said.get("@device")
    text.read_only = "readonly" in first
    if "shareable" in first:
        text.shareable = Claim("", f"{base}/shareable", line_of(first["shareable"]))
    text.target = said.get("target/@dev")
    text.logical_block_size = said.get("blockio/@logical_block_size")
    _read_drivers(text, said)
    if "iotune" in first:
        text.limits = _limits(first["iotune"], f"{base}/iotune")
    if "source" in first:
        _read_source(text, said, first["source"], f"{base}/source")
    if "backingStore" in first:
        text.layers = list(layers(text, disk, base, max_layers))
    return text


def _read_drivers(text: DiskText, said: Mapping[str, Claim]) -> None:
    text.drivers = [(said[name], reason) for name, reason in _DRIVER_PLACES.items() if name in said]
    text.cache = said.get("driver/@cache")
    text.io = said.get("driver/@io")
    text.discard = said.get("driver/@discard")
    text.detect_zeroes = said.get("driver/@detect_zeroes")


def _read_source(text: DiskText, said: Mapping[str, Claim], source: "etree._Element", path: str) -> None:
    """`type` lies in the field, so a source in the other type's attribute counts when its own is absent."""
    file, device = said.get("source/@file"), said.get("source/@dev")
    text.source = device or file if text.type and text.type.text == "block" else file or device
    text.startup_policy = said.get("source/@startupPolicy")
    if len(source):
        _read_slices(text, source.findall("slices/slice"), f"{path}/slices")


def _read_slices(text: DiskText, slices: Sequence["etree._Element"], path: str) -> None:
    for one in slices:
        if one.get("type") != "storage" or len(slices) > 1:
            message = "only one slice, of type 'storage', is served"
            text.refuse(Reason.UNSUPPORTED_FEATURE, Claim("", path, line_of(one)), message)
            return
        text.slice_offset = _attribute(one, "offset", f"{path}/slice")
        text.slice_size = _attribute(one, "size", f"{path}/slice")


def _limits(iotune: "etree._Element", path: str) -> dict[str, Claim]:
    """The numbers in an `iotune`; the last of a name counts, as nothing tells which one was meant."""
    return {child.tag: Claim((child.text or "").strip(), f"{path}/{child.tag}", line_of(child)) for child in iotune}


def _attribute(element: "etree._Element", name: str, path: str) -> Claim | None:
    """An attribute with its place; an empty one counts as absent, as in libvirt."""
    value = element.get(name)
    return Claim(value, f"{path}/@{name}", line_of(element)) if value else None


def _classify(text: DiskText, said: dict[str, Claim], element: "etree._Element", path: str, prefix: str = "") -> None:
    """Put every attribute and child into the list that the table says, those of structural children as well.

    What the attributes say is noted in `said`, by their names; an empty one says nothing, as in libvirt.
    """
    line = line_of(element)
    for attribute, value in cast("Iterable[tuple[str, str]]", element.items()):
        name = f"{prefix}@{attribute}"
        _sort(text, name, element, path, f"@{attribute}")
        if value:
            said[name] = Claim(value, f"{path}/@{attribute}", line)
    seen: set[str] = set()
    for child in element:
        name = prefix + child.tag
        if name in STRUCTURE and name not in seen:
            seen.add(name)
            _classify(text, said, child, f"{path}/{name}", f"{name}/")
        elif name in STRUCTURE:
            text.unknown.append(f"{name} (another one; the first counts)")
        elif name in _HARMLESS and _HARMLESS[name](child):
            text.names[Handling.PASSED].append(name)
        else:
            _sort(text, name, child, path, child.tag)


def _sort(text: DiskText, name: str, element: "etree._Element", path: str, step: str) -> None:
    row = TABLE.get(name)
    if row is None:
        text.unknown.append(name)
    elif row.handling is Handling.REFUSED:
        message = f"'{name}' is not served: {row.remark}; remove it, or leave this disk to the hypervisor"
        text.refuse(Reason.UNSUPPORTED_FEATURE, Claim("", f"{path}/{step}", line_of(element)), message)
    else:
        text.names[row.handling].append(name)
