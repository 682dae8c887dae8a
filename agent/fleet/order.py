"""From what an operator asks for to one numbered document for each guest and host. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from agent.fleet.census import Census
from agent.fleet.delivery import Delivery
from agent.fleet.targets import Selection, Target, TargetError, resolve
from agent.fleet.template import TemplateError, fill_in
from agent.fleet.words import counted, names
from agent.trust.seal import GENERATION_PLAUSIBLE, Seal


class RefusedError(Exception):
    """Nothing is published. The message says what hosts would refuse or can't be told, and what would be right."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A guest to push: its domain XML, or None to take its disks down."""

    guest: str
    xml: str | None


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be published, and how.

    Attributes:
        wanted: For whom.
        generation: Of every document; None counts on from what the bus knows of each guest.
        template: Fill `{host}` and labels into source paths.
        seconds: How long to wait for the hosts to have done it; None does not wait.
        seal: Signs the documents; None leaves them unsigned.
    """

    wanted: Selection
    generation: int | None = None
    template: bool = False
    seconds: float | None = None
    seal: Seal | None = None


def address(definitions: Sequence[Definition], census: Census, order: Order, fleet: str) -> list[Delivery]:
    """A document for each guest and host, not numbered yet. One that a host's own document overrides is over already.

    Raises:
        TargetError: Nobody is meant, or nobody that is meant has a guest that is to be taken down.
        RefusedError: A source can't be filled in for one of the hosts.
    """
    group = order.wanted.group
    try:
        targets = resolve(order.wanted, census.fleet.hosts, fleet)
    except TargetError:
        if group is None:
            raise
        return [Delivery(None, definition.guest, definition.xml, group) for definition in definitions]
    found = [
        Delivery(target.host, definition.guest, filled(definition, target, template=order.template), group)
        for definition in definitions
        for target in targets
        if definition.xml is not None or order.wanted.hosts or has(census, target.host, definition.guest)
    ]
    if not found:
        guests = names([repr(definition.guest) for definition in definitions])
        raise TargetError(f"none of the {counted(len(targets), 'host')} that {order.wanted} means has guest {guests}")
    for delivery in found:
        if group is not None and delivery.host and census.own_message(delivery.host, delivery.guest):
            delivery.settle("overridden", "the host has a document of its own for the guest, which wins over a group's")
    return found


def has(census: Census, host: str, guest: str) -> bool:
    """Whether the host says that it has the guest, or is told so."""
    return (host, guest) in census.fleet.guests or census.in_force(host, guest) is not None


def filled(definition: Definition, target: Target, *, template: bool) -> str | None:
    """A guest's XML for one host; with a template, filled in.

    Raises:
        RefusedError: A source can't be filled in.
    """
    if definition.xml is None or not template:
        return definition.xml
    try:
        return fill_in(definition.xml, target.host, target.labels)
    except TemplateError as error:
        raise RefusedError(f"guest {definition.guest!r}: {error}; nothing was published") from error


def number(delivery: Delivery, deliveries: Sequence[Delivery], census: Census, order: Order, limit: int) -> None:
    """Give a document its generation, at least that which the bus knows of.

    Raises:
        RefusedError: The generation asked for is lower, the one to be signed is not plausible, or the document is
            larger than hosts take.
    """
    if delivery.group is None:
        known = census.generation(delivery.host or "", delivery.guest)
    else:
        known = census.group_generation(delivery.group, delivery.guest, [one.host for one in deliveries if one.host])
    if order.generation is not None and order.generation < known:
        raise RefusedError(
            f"guest {delivery.guest!r}: generation {order.generation} is below {known}, which is known already for "
            f"{delivery.place}, so hosts would ignore it; nothing was published; say a higher one, or leave out "
            "--generation"
        )
    if order.seal is not None and order.generation is None and known > GENERATION_PLAUSIBLE:
        raise RefusedError(
            f"guest {delivery.guest!r}: the bus says that {delivery.place} has generation {known}, and nobody counts "
            "that far; the next one might be the last that can ever be signed; nothing was published; find out who "
            "wrote that, and say the right --generation"
        )
    delivery.number(known + 1 if order.generation is None else order.generation, order.seal)
    if len(delivery.payload) > limit:
        raise RefusedError(
            f"guest {delivery.guest!r}: the document has {len(delivery.payload)} bytes and hosts take {limit} "
            "(limits.document_bytes); nothing was published"
        )
