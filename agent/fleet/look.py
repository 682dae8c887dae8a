"""Looking at the fleet, or at the part of it that is meant."""

from collections.abc import Iterator

from agent.bus.operator import Operator
from agent.bus.topics import FleetTopics
from agent.fleet.targets import Selection, is_meant
from agent.fleet.view import Fleet


async def look(op: Operator, wanted: Selection | None, guest: str | None, *, glances: bool = False) -> Fleet:
    """What is retained about hosts and guests; what changes later comes by `op.message`.

    Args:
        op: The connection.
        wanted: Whose guests; None stands for every host. What hosts with other labels say comes as well: see `shown`.
        guest: Only guests of this name.
        glances: The hosts' own statuses, too.
    """
    fleet = Fleet(op.topics)
    for message in await op.retained(*_filters(op.topics, wanted, guest, glances)):
        fleet.take(message)
    return fleet


def shown(fleet: Fleet, wanted: Selection | None) -> Fleet:
    """The part of a fleet that is meant, as its hosts' labels are now."""
    if wanted is None or wanted.every:
        return fleet
    if wanted.hosts:
        return fleet.only(lambda host: host in wanted.hosts)
    meant = {host for host, agent in fleet.hosts.items() if is_meant(wanted, agent)}
    return fleet.only(lambda host: host in meant)


def _filters(topics: FleetTopics, wanted: Selection | None, guest: str | None, glances: bool) -> Iterator[str]:
    if wanted is None or not wanted.hosts:
        yield topics.every_agent
        yield topics.every_status if guest is None else topics.status_anywhere(guest)
        if glances:
            yield topics.every_host_status
        return
    for host in map(topics.of, wanted.hosts):
        yield host.agent
        yield host.status_filter if guest is None else host.status(guest)
        if glances:
            yield host.host_status
