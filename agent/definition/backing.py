"""`<backingStore>`: the images below a disk's own, which its definition must declare one by one.

Nothing is taken from the images themselves, so a layer without a format is refused, as is whatever would change what
its bytes mean.
"""

from collections.abc import Iterator

from lxml import etree

from agent.definition.document import line_of
from agent.definition.text import Claim, DiskText, LayerText
from reconcilers.reason import Reason

_KNOWN = frozenset({"format", "source", "backingStore", "privateData"})
_KNOWN_OF_SOURCE = frozenset({"seclabel", "privateData"})


def ends_here(element: "etree._Element") -> bool:
    """Whether a `<backingStore>` says that there is nothing below: it has neither children nor a type."""
    return len(element) == 0 and not element.get("type")


def layers(text: DiskText, disk: "etree._Element", path: str, most: int) -> Iterator[LayerText]:
    """The layers of a disk, the uppermost first, up to the first one that is refused.

    Args:
        text: What is refused is noted here.
        disk: The `<disk>`.
        path: Its path, for what is refused.
        most: How many there may be.
    """
    if len(found := disk.findall("backingStore")) > 1:
        message = "two of 'backingStore' leave it open which image is below; keep one"
        text.refuse(Reason.UNSUPPORTED_FEATURE, Claim("", f"{path}/backingStore", line_of(found[1])), message)
        return
    element, count = disk.find("backingStore"), 0
    while element is not None and not ends_here(element):
        path, count = f"{path}/backingStore", count + 1
        at = Claim("", path, line_of(element))
        fault = _fault(element) or (("", f"number {count} is one too many") if count > most else None)
        if fault:
            message = f"'backingStore' {fault[1]}; or leave this disk to the hypervisor"
            text.refuse(Reason.UNSUPPORTED_FEATURE, at._replace(path=path + fault[0]), message)
            return
        source, form = element.find("source"), element.find("format")
        name = (source.get("file") or "") if source is not None else ""
        kind = (form.get("type") or "") if form is not None else ""
        if not name or not kind:
            message = "'backingStore' needs <source file=…> and <format type=…>, as no image is probed; name both"
            text.refuse(Reason.MISSING_SOURCE, at, message)
            return
        yield LayerText(at._replace(text=name), at._replace(text=kind))
        element = element.find("backingStore")


def _fault(element: "etree._Element") -> tuple[str, str] | None:
    """Which part of a layer is not served, as a step of its path, and why."""
    kind = element.get("type", "file")
    if kind != "file":
        return "/@type", f"of type '{kind[:40]}' is not served; copy it to a file, and name that"
    tags = [str(child.tag) for child in element]
    if strange := sorted({tag for tag in tags if tag not in _KNOWN} | {tag for tag in _KNOWN if tags.count(tag) > 1}):
        return f"/{strange[0][:40]}", f"with {strange[0][:40]} is not served; take that out"
    inside = [str(child.tag) for source in element.findall("source") for child in source]
    if strange := sorted(set(inside) - _KNOWN_OF_SOURCE):
        return f"/source/{strange[0][:40]}", f"whose source has {strange[0][:40]} is not served; take that out"
    return None
