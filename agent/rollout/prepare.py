"""What each host of a wave gets, what it had before, and how that is brought back. Pure."""

from agent.definition import DocumentRejected
from agent.document import digest
from agent.fleet.census import Census
from agent.fleet.delivery import Delivery
from agent.fleet.order import Definition, Order, filled, number
from agent.fleet.targets import Selection, Target
from agent.rollout.record import BeforeDocument, HostEntry, Record, RolloutPlan, RolloutWave
from agent.trust.seal import Seal

__all__ = ["Prepared", "documents_before", "prepare", "restoring"]

Prepared = tuple[RolloutWave, dict[str, BeforeDocument], list[Delivery]]
"""A wave with all that is to be kept of it, the documents from before it, and its documents with their outcomes."""


def prepare(plan: RolloutPlan, wave: RolloutWave, census: Census, *, limit: int, seal: Seal | None = None) -> Prepared:
    """Make a wave ready to be published; one that was made ready before comes out as it was.

    A document that somebody else has pushed since is left alone: its delivery is over, and overtaken.

    Args:
        plan: What is rolled out.
        wave: The wave.
        census: Hosts, documents and statuses as they are now.
        limit: Bytes that a document may have.
        seal: Signs the documents that are still to be published.

    Raises:
        RefusedError: A source can't be filled in for a host, or its document is too large.
    """
    entries, before, deliveries = list[HostEntry](), dict[str, BeforeDocument](), list[Delivery]()
    for entry in wave.hosts:
        delivery = _delivery(plan, entry, census)
        if not delivery.payload and not delivery.over:
            _complete(delivery, entry, census, limit, seal)
        deliveries.append(delivery)
        if entry.sha256 is not None:
            entries.append(entry.model_copy(update={"sha256": entry.sha256 if delivery.over else delivery.sha256}))
            continue
        previous = documents_before(census, entry.host, plan.guest)
        if isinstance(previous, BeforeDocument):
            before[previous.key] = previous
        entries.append(
            HostEntry(
                host=entry.host,
                generation=delivery.generation,
                sha256=delivery.sha256,
                previous="document" if isinstance(previous, BeforeDocument) else previous,
                before=previous.key if isinstance(previous, BeforeDocument) else None,
            )
        )
    return RolloutWave(number=wave.number, hosts=tuple(entries)), before, deliveries


def _delivery(plan: RolloutPlan, entry: HostEntry, census: Census) -> Delivery:
    target = Target(entry.host, census.fleet.hosts.get(entry.host))
    message, now = census.own_message(entry.host, plan.guest), census.own(entry.host, plan.guest)
    delivery = Delivery(entry.host, plan.guest, plan.definition)
    if message and entry.sha256 == digest(message.payload):
        delivery.generation, delivery.payload = entry.generation or 0, message.payload
        return delivery
    if entry.generation is not None and now and (now.generation or 0) >= entry.generation:
        delivery.generation = entry.generation
        delivery.settle("overtaken", f"somebody else pushed generation {now.generation} of it since")
        return delivery
    delivery.xml = filled(Definition(plan.guest, plan.definition), target, template=plan.template)
    return delivery


def _complete(delivery: Delivery, entry: HostEntry, census: Census, limit: int, seal: Seal | None) -> None:
    """Number and seal a document that is still to be published; it keeps the number that was chosen for it before."""
    order = Order(Selection(hosts=(entry.host,)), entry.generation, seal=seal)
    number(delivery, [delivery], census, order, limit)


def documents_before(census: Census, host: str, guest: str) -> BeforeDocument | str:
    """What a host is told of a guest now; `none` or `unknown` where that is no document.

    Unknown is a guest that the host shows and the bus has no good document of, one that was withdrawn for example:
    then only the host knows what it is to do, and nothing must be concluded from the lack of a document.
    """
    document = census.in_force(host, guest)
    if document is not None:
        try:
            xml = document.body.decode() if document.state == "present" else None
        except (UnicodeDecodeError, DocumentRejected):
            return "unknown"
        return BeforeDocument(state=document.state, domain_xml=xml)
    status = census.fleet.guests.get((host, guest))
    heard_of = status is not None and (status.disks or status.sha256 is not None)
    return "unknown" if heard_of or census.own_message(host, guest) else "none"


def restoring(record: Record, census: Census) -> tuple[list[Delivery], dict[str, str]]:
    """The documents that bring back what was before, and the hosts that are left alone, with the reason why."""
    deliveries, left_alone = list[Delivery](), dict[str, str]()
    for entry in (entry for wave in record.waves.values() for entry in wave.hosts if entry.sha256 is not None):
        found = _restoring(record, entry, census)
        if isinstance(found, Delivery):
            deliveries.append(found)
        elif found:
            left_alone[entry.host] = found
    return deliveries, left_alone


def _restoring(record: Record, entry: HostEntry, census: Census) -> Delivery | str | None:
    """A host's document from before, or why there is none; None where the rollout has not come to it."""
    guest = record.plan.guest
    message, now = census.own_message(entry.host, guest), census.own(entry.host, guest)
    generation = entry.generation or 0
    before = record.before.get(entry.before) if entry.before else None
    if message is None:
        return "its document was taken off the bus since" if entry.host in _reached(record, census) else None
    if entry.previous == "unknown" or (entry.previous == "document" and before is None):
        return "what it was told before could not be read, so it can't be brought back"
    delivery = Delivery(entry.host, guest, before.domain_xml if before else None)
    if digest(message.payload) == entry.sha256:
        delivery.number(generation + 1)
        return delivery
    if now and now.generation == generation + 1 and now.body.decode().strip() == (delivery.xml or "").strip():
        delivery.generation, delivery.payload = generation + 1, message.payload
        return delivery
    if now and (now.generation or 0) < generation:
        return None
    return f"somebody pushed generation {now.generation if now else 'unknown'} of it since"


def _reached(record: Record, census: Census) -> set[str]:
    """Hosts whose status shows the rollout's document or a later one."""
    generations = {entry.host: entry.generation or 0 for wave in record.waves.values() for entry in wave.hosts}
    return {
        host
        for (host, guest), status in census.fleet.guests.items()
        if guest == record.plan.guest and (status.observed_generation or 0) >= generations.get(host, 0) > 0
    }
