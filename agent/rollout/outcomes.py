"""What became of a rollout on each host, as the hosts' own statuses tell. Pure."""

from agent.fleet.census import Census
from agent.fleet.delivery import Delivery, verdict
from agent.rollout.prepare import restoring
from agent.rollout.record import TAKEN_BACK, HostEntry, Record


def outcomes(record: Record, census: Census) -> dict[str, Delivery]:
    """The outcome on every host whose wave has begun; `published` where it is still to come.

    Of a rollout that is taken back: whether the host has again what it was told before.
    """
    if record.state and record.state.phase in TAKEN_BACK:
        return _taken_back(record, census)
    return {
        entry.host: _outcome(record, entry, census)
        for wave in record.waves.values()
        for entry in wave.hosts
        if entry.sha256 is not None
    }


def _outcome(record: Record, entry: HostEntry, census: Census) -> Delivery:
    guest = record.plan.guest
    message = census.own_message(entry.host, guest)
    delivery = Delivery(entry.host, guest, record.plan.definition, generation=entry.generation or 0)
    delivery.payload = message.payload if message else b""
    if delivery.sha256 != entry.sha256:
        now = census.own(entry.host, guest)
        newer = f"generation {now.generation}" if now else "nothing"
        delivery.settle("overtaken", f"the bus has {newer} for it now")
        return delivery
    verdict(delivery, census.fleet.guests.get((entry.host, guest)), heard=True, settled=True)
    return delivery


def _taken_back(record: Record, census: Census) -> dict[str, Delivery]:
    guest = record.plan.guest
    deliveries, left_alone = restoring(record, census)
    for one in deliveries:
        there = census.own_message(one.host or "", guest)
        if there and there.payload == one.payload:
            verdict(one, census.fleet.guests.get((one.host or "", guest)), heard=True, settled=True)
    for host, why in left_alone.items():
        left = Delivery(host, guest, None)
        left.settle("overtaken", why)
        deliveries.append(left)
    return {one.host or "": one for one in deliveries}
