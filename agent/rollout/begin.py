"""How a rollout begins: its hosts are told apart into waves, it is written down, and its hosts are claimed."""

from dataclasses import dataclass

from agent.fleet.census import Census, take_census
from agent.fleet.order import Definition, RefusedError, filled
from agent.fleet.targets import Selection, Target, check_names, known, resolve
from agent.fleet.words import names
from agent.rollout.claim import claim
from agent.rollout.prepare import documents_before
from agent.rollout.record import HostEntry, Phase, Record, RolloutPlan, RolloutState, RolloutWave, messages
from agent.rollout.seat import Seat
from agent.rollout.waves import Share, split
from agent.status import now
from agent.trust.seal import Seal

EVERYWHERE = Selection(every=True)

NO_BLIND_SEAL = (
    "its documents are signed, and a key must not sign what the bus says, of hosts or of what was there before; begin "
    "a new rollout from the file, with --sign (hosts that have it already are not disturbed), also to bring a previous "
    "definition back"
)
"""Why a signed rollout is not gone on with and not taken back: who can write on the bus could have anything signed."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a change goes out: see `RolloutPlan`."""

    canary: int
    wave: Share
    max_failed: Share
    seconds: float
    rollback: bool
    template: bool
    seal: Seal | None = None


async def begin(place: Seat, rollout: str, definition: Definition, wanted: Selection, terms: Terms) -> Record:
    """Put a new rollout on the bus and claim its hosts.

    Raises:
        TargetError: Nobody is meant, or a host that never was in the fleet.
        RefusedError: A host would get what can't be filled in, or could not be given back what it has.
        RivalError: Another rollout is under way on some of the hosts.
    """
    op = place.op
    check_names(wanted, op.topics)
    op.topics.desired_anywhere(definition.guest)
    census = await take_census(op, EVERYWHERE, [definition.guest])
    targets = known(resolve(wanted, census.fleet.hosts, op.topics.fleet), op.topics.fleet)
    _check(definition, targets, census, terms)
    waves = split(targets, terms.canary, terms.wave)
    plan = RolloutPlan(
        guest=definition.guest,
        definition=definition.xml,
        template=terms.template,
        targets=str(wanted),
        hosts=len(targets),
        waves=len(waves),
        canary=min(terms.canary, len(targets)),
        max_failed=terms.max_failed.at_most_of(len(targets)),
        timeout_s=terms.seconds,
        rollback=terms.rollback,
        signed=terms.seal is not None,
        operator=place.me.operator,
        started_at=now(),
    )
    entries = {number: tuple(HostEntry(host=host) for host in hosts) for number, hosts in enumerate(waves, 1)}
    record = Record(
        rollout, plan, waves={number: RolloutWave(number=number, hosts=hosts) for number, hosts in entries.items()}
    )
    await place.take()
    await op.publish_all(messages(record, op.topics))
    record.state = RolloutState(
        phase=Phase.CLAIMING, wave=1, message="its hosts are being claimed", operator=plan.operator, changed_at=now()
    )
    await op.publish(op.topics.rollout(rollout, "state"), record.state.model_dump_json().encode())
    await claim(op, record)
    return record


def _check(definition: Definition, targets: list[Target], census: Census, terms: Terms) -> None:
    """Refuse at the start what would only be found out in the middle."""
    for target in targets:
        filled(definition, target, template=terms.template)
    if terms.rollback and terms.seal is not None:
        raise RefusedError(NO_BLIND_SEAL)
    if terms.rollback:
        unclear = [
            target.host for target in targets if documents_before(census, target.host, definition.guest) == "unknown"
        ]
        if unclear:
            raise RefusedError(
                f"{names(unclear)}: the host shows guest {definition.guest!r} and the bus has no good document of it, "
                "so nothing could be restored there; push the definition in force there first, or leave out --rollback"
            )
