"""Guest definitions: text in, frozen values out, and every fault of the text with its place.

Nothing here touches the host. `parse_domain` reads what comes over the bus; `parse_file` reads what a person has in
a file, which may also be a guest configuration file for xm or xl.
"""

from agent.definition.configuration import guest_from_configuration
from agent.definition.document import parse_xml, text_of
from agent.definition.domain import domains_in, guest_from
from agent.definition.model import DiskDefinition, DocumentRejected, Finding, GuestDefinition, Limits

__all__ = [
    "DiskDefinition",
    "DocumentRejected",
    "Finding",
    "GuestDefinition",
    "Limits",
    "parse_domain",
    "parse_file",
]

_LIMITS = Limits()


def parse_domain(document: bytes, *, name: str | None = None, limits: Limits = _LIMITS) -> GuestDefinition:
    """Read one libvirt domain definition.

    Args:
        document: What `virsh dumpxml` prints, as UTF-8.
        name: The guest's name as the topic or the JSON around the definition has it.
        limits: What a document may hold.

    Raises:
        DocumentRejected: The document can't be used at all. A disk that can't be served is no reason: it is in the
            definition, without a spec and with what is refused.
    """
    return guest_from(parse_xml(text_of(document, limits), limits), name=name, limits=limits)


def parse_file(document: bytes, *, name: str | None = None, limits: Limits = _LIMITS) -> list[GuestDefinition]:
    """Read what a person has in a file: one or several `<domain>`s, or a guest configuration file of xm or xl.

    Args:
        document: The file's bytes, UTF-8.
        name: What every guest in it must be called; may stand in for a missing name.
        limits: What a document may hold.

    Raises:
        DocumentRejected: As in `parse_domain`; with several guests, for everything that is wrong with any of them.
    """
    text = text_of(document, limits)
    if not text.lstrip().startswith(b"<"):
        return [guest_from_configuration(text.decode(), name=name, limits=limits)]
    root = parse_xml(text, limits, several=True)
    domains = domains_in(root) or [root]
    return [guest_from(domain, name=name, limits=limits) for domain in domains]
