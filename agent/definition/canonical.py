"""The one spelling that stands for all others: what a definition's disks come to, as libvirt domain XML."""

from lxml import etree

from agent.definition.model import GuestDefinition
from reconcilers.spec import Backend, Device, DiskSpec, StartupPolicy
from reconcilers.tuning import UNTUNED, DetectZeroes

_DRIVERS = {Backend.LOOP: "loop", Backend.BLKTAP: "blktap", Backend.BLOCK: "phy"}


def canonical(guest: GuestDefinition) -> bytes:
    """Write a guest's disks in canonical form, as UTF-8.

    What the reconcilers get is there, and nothing else: no hypervisor's business, nothing that no backend honours, no
    refused disk. Parsed again it gives the same specs, and written again the same bytes.
    """
    domain = etree.Element("domain")
    etree.SubElement(domain, "name").text = guest.name
    devices = etree.SubElement(domain, "devices")
    for disk in guest.disks:
        if disk.spec is not None:
            _write(devices, disk.spec)
    etree.indent(domain)
    return etree.tostring(domain, encoding="utf-8", xml_declaration=False) + b"\n"


def _write(devices: "etree._Element", spec: DiskSpec) -> None:
    kind, attribute = ("block", "dev") if spec.backend is Backend.BLOCK else ("file", "file")
    disk = etree.SubElement(devices, "disk", type=kind, device=spec.device)
    driver = _driver(spec)
    if driver:
        etree.SubElement(disk, "driver", driver)
    named = {attribute: spec.source} if spec.source is not None else {}
    policy = {"startupPolicy": spec.startup_policy} if spec.startup_policy is not StartupPolicy.MANDATORY else {}
    source = etree.SubElement(disk, "source", {**named, **policy})
    part = {"offset": str(spec.slice_offset), **({"size": str(spec.slice_size)} if spec.slice_size else {})}
    if part != {"offset": "0"}:
        etree.SubElement(etree.SubElement(source, "slices"), "slice", {"type": "storage", **part})
    below = disk
    for layer in spec.chain:
        below = etree.SubElement(below, "backingStore", type="file")
        etree.SubElement(below, "format", type=layer.format)
        etree.SubElement(below, "source", file=layer.path)
    etree.SubElement(disk, "target", dev=spec.key.target)
    if spec.logical_block_size is not None:
        etree.SubElement(disk, "blockio", logical_block_size=str(spec.logical_block_size))
    if spec.tuning.limits:
        iotune = etree.SubElement(disk, "iotune")
        for name, value in spec.tuning.limits:
            etree.SubElement(iotune, name).text = str(value)
    if spec.read_only and spec.device is not Device.CDROM:
        etree.SubElement(disk, "readonly")
    if spec.shareable:
        etree.SubElement(disk, "shareable")


def _driver(spec: DiskSpec) -> dict[str, str]:
    asked, usual = spec.tuning, UNTUNED
    driver: dict[str, str] = {}
    if spec.backend is not None and spec.format is not None:
        driver = {"name": _DRIVERS[spec.backend], "type": spec.format}
    if asked.cache is not usual.cache:
        driver["cache"] = asked.cache
    if asked.io:
        driver["io"] = asked.io
    if not asked.discard:
        driver["discard"] = "ignore"
    elif asked.detect_zeroes is DetectZeroes.UNMAP:
        driver["discard"] = "unmap"
    if asked.detect_zeroes is not usual.detect_zeroes:
        driver["detect_zeroes"] = asked.detect_zeroes
    return driver
