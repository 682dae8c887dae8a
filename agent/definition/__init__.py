"""Guest definitions: text in, frozen values out, and every fault of the text with its place.

Nothing here touches the host. `parse_domain` reads what comes over the bus; `parse_file` reads what a person has in
a file, which may also be a guest configuration file for xm or xl, or xend's own.
"""

from collections.abc import Callable, Iterator
from functools import partial

from agent.definition.configuration import guest_from_configuration
from agent.definition.document import parse_xml, text_of
from agent.definition.domain import domains_in, guest_from
from agent.definition.model import DiskDefinition, DocumentRejected, Finding, GuestDefinition, Limits
from agent.definition.sxp import guest_from_sxp, lists_in

__all__ = [
    "DiskDefinition",
    "DocumentRejected",
    "Finding",
    "GuestDefinition",
    "Limits",
    "parse_domain",
    "parse_each",
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
    """Read what a person has in a file.

    That is one or several `<domain>`s, a guest configuration file of xm or xl, or domains as xend kept them.

    Args:
        document: The file's bytes, UTF-8.
        name: What every guest in it must be called; may stand in for a missing name.
        limits: What a document may hold.

    Raises:
        DocumentRejected: As in `parse_domain`, with everything that is wrong with any guest of the file.
    """
    outcomes = list(parse_each(document, name=name, limits=limits))
    rejected = [outcome for outcome in outcomes if isinstance(outcome, DocumentRejected)]
    if rejected:
        raise DocumentRejected(*(finding for one in rejected for finding in one.findings), guest=rejected[0].guest)
    return [outcome for outcome in outcomes if isinstance(outcome, GuestDefinition)]


def parse_each(
    document: bytes, *, name: str | None = None, limits: Limits = _LIMITS
) -> Iterator[GuestDefinition | DocumentRejected]:
    """Read a file as `parse_file` does, so that one bad guest hides no other: each is there or is its rejection."""
    try:
        guests = _guests(text_of(document, limits), name, limits)
    except DocumentRejected as rejected:
        yield rejected
        return
    for read in guests:
        try:
            yield read()
        except DocumentRejected as rejected:
            yield rejected


def _guests(text: bytes, name: str | None, limits: Limits) -> list[Callable[[], GuestDefinition]]:
    """A way to read each guest of a file."""
    if text.lstrip().startswith(b"("):
        return [partial(guest_from_sxp, domain, name=name, limits=limits) for domain in lists_in(text.decode(), limits)]
    if not text.lstrip().startswith(b"<"):
        return [partial(guest_from_configuration, text.decode(), name=name, limits=limits)]
    root = parse_xml(text, limits, several=True)
    domains = domains_in(root) or [root]
    return [partial(guest_from, domain, name=name, limits=limits) for domain in domains]
