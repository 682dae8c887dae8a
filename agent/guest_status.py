"""From documents and reports to the status of one guest. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from agent.definition import DiskDefinition
from agent.definition.classification import names_of
from agent.desired import DesiredWorld
from agent.document import DesiredDocument
from agent.report import Report
from agent.status import (
    AT_REST,
    BackingImage,
    Condition,
    ConditionType,
    DiskError,
    DiskStatus,
    Effective,
    GuestStatus,
    InUse,
    Phase,
    ProcessHolder,
    Requested,
    Tap,
    now,
)
from reconcilers.actual import Attached
from reconcilers.holders import DeviceHolders
from reconcilers.honour import Feature, unhonoured
from reconcilers.reason import Reason
from reconcilers.spec import Device, DiskKey

WORST_FIRST = (
    Phase.FAILED,
    Phase.LOST,
    Phase.REFUSED,
    Phase.DEGRADED,
    Phase.IN_USE,
    Phase.ORPHANED,
    Phase.DETACHING,
    Phase.ATTACHING,
    Phase.PENDING,
    Phase.UP,
    Phase.DOWN,
)


_ALL_FEATURES = frozenset(Feature)


@dataclass(frozen=True, slots=True)
class Shown:
    """A disk's latest report, and since when it is in its phase."""

    report: Report
    since: datetime


def guest_status(
    guest: str,
    world: DesiredWorld,
    shown: Mapping[str, Shown],
    *,
    unseen: Iterable[str],
    observed: DesiredDocument | None,
    before: GuestStatus | None,
    host: str,
    stable_path: Callable[[DiskKey], str],
) -> GuestStatus:
    """The status of one guest.

    Args:
        guest: Its name.
        world: The documents in force.
        shown: The latest report of each disk that has one, by target.
        unseen: Targets of disks that are to be looked at; what becomes of them is not known before.
        observed: The newest document under which every disk has been looked at.
        before: The status as it was shown last, for the times of its conditions.
        host: This host's name.
        stable_path: Where a disk's stable path is.
    """
    disks = tuple(
        _disk_status(target, disk, shown.get(target) or _unreported(disk), stable_path(DiskKey(guest, target)))
        for target, disk in _disks(guest, world, {*shown, *unseen}).items()
    )
    known = {one.type: one for one in before.conditions} if before else {}
    return GuestStatus(
        guest=guest,
        host=host,
        phase=_phase(guest, world, disks),
        observed_generation=observed.generation if observed else None,
        sha256=observed.sha256 if observed else None,
        conditions=(
            _accepted(guest, world, known.get(ConditionType.ACCEPTED)),
            _ready(disks, known.get(ConditionType.READY)),
        ),
        disks=disks,
    )


def condition(
    kind: ConditionType,
    holds: bool | None,
    reason: Reason,
    message: str,
    *,
    before: Condition | None,
) -> Condition:
    """A condition; the time of its last transition is kept while its answer is the same."""
    status = {True: "True", False: "False", None: "Unknown"}[holds]
    since = before.last_transition_time if before and before.status == status else now()
    return Condition.model_validate(
        {"type": kind, "status": status, "reason": reason, "message": message, "last_transition_time": since}
    )


def _disks(guest: str, world: DesiredWorld, here: set[str]) -> dict[str, DiskDefinition | None]:
    """Every disk to show: the defined ones in document order, then what else is here or may be."""
    disks: dict[str, DiskDefinition | None] = {}
    for position, disk in enumerate(world.disks(guest), 1):
        disks.setdefault(disk.target or f"disk[{position}]", disk)
    return disks | dict.fromkeys(sorted(here - disks.keys()))


def _phase(guest: str, world: DesiredWorld, disks: tuple[DiskStatus, ...]) -> Phase:
    in_force = world.guest(guest)
    if in_force and in_force.withdrawn:
        return Phase.WITHDRAWN
    phases = {disk.phase for disk in disks}
    if in_force is None and world.rejection(guest):
        phases.add(Phase.REFUSED)
    at_rest = Phase.DOWN if in_force and in_force.document.state == "absent" else Phase.UP
    return min(phases, key=WORST_FIRST.index, default=at_rest)


def _unreported(disk: DiskDefinition | None) -> Shown:
    if disk and disk.refused:
        finding = disk.refused[0]
        report = Report(phase=Phase.REFUSED, reason=finding.reason, message=finding.message, attached=None)
    else:
        report = Report(phase=Phase.PENDING, reason=Reason.PROGRESSING, message="it waits its turn", attached=None)
    return Shown(report, now())


def _disk_status(target: str, disk: DiskDefinition | None, shown: Shown, stable_path: str) -> DiskStatus:
    report, attached = shown.report, shown.report.attached
    troubled = report.phase not in AT_REST or report.reason is Reason.FORMAT_MISMATCH
    return DiskStatus(
        target=target,
        device=disk.device if disk else Device.DISK,
        phase=report.phase,
        source=disk.source if disk else None,
        backing=_backing(disk, attached),
        requested=Requested(backend=disk.backend if disk else None, format=disk.format if disk else None),
        effective=_effective(attached) if attached else None,
        device_path=attached.node if attached else None,
        stable_path=stable_path if attached and attached.linked else None,
        diskseq=attached.diskseq if attached else None,
        size_bytes=attached.size_bytes if attached else None,
        logical_block_size=attached.logical_block_size if attached else None,
        read_only=attached.read_only if attached else bool(disk and disk.read_only),
        direct_io=attached.tuning.cache.direct if attached else None,
        in_use=_in_use(report.holders) if report.holders else None,
        last_outage=report.outage,
        since=shown.since,
        attempts=report.attempts,
        next_retry=report.next_retry,
        error=DiskError(reason=report.reason, message=report.message) if troubled else None,
        unhonoured=_unhonoured(disk, attached),
    )


def _in_use(holders: DeviceHolders) -> InUse:
    processes = tuple(ProcessHolder(pid=one.pid, name=one.name) for one in holders.processes)
    return InUse(processes=processes, mounts=holders.mounts, devices=holders.devices)


def _backing(disk: DiskDefinition | None, attached: Attached | None) -> tuple[BackingImage, ...]:
    chain = attached.chain if attached else disk.spec.chain if disk and disk.spec else ()
    return tuple(BackingImage(source=layer.path, format=layer.format) for layer in chain)


def _effective(attached: Attached) -> Effective:
    tap = Tap.model_validate(attached.tap, from_attributes=True) if attached.tap else None
    return Effective(backend=attached.backend, format=attached.format, server=attached.server, tap=tap)


def _unhonoured(disk: DiskDefinition | None, attached: Attached | None) -> tuple[str, ...]:
    if disk is None or disk.spec is None:
        return disk.unhonoured if disk else ()
    lacking = unhonoured(disk.spec, attached)
    told_before_looking = names_of(_ALL_FEATURES, disk.unhonoured)
    names = [name for name in disk.unhonoured if name not in told_before_looking]
    names += names_of(lacking, (*disk.honoured, *disk.unhonoured))
    if Feature.READ_ONLY in lacking:
        names.append("readonly")  # a cdrom's definition need not say it
    return tuple(dict.fromkeys(names))


def _accepted(guest: str, world: DesiredWorld, before: Condition | None) -> Condition:
    rejection, in_force = world.rejection(guest), world.guest(guest)
    kind = ConditionType.ACCEPTED
    if rejection:
        places = [f"line {one.line}: {one.message}" if one.line else one.message for one in rejection.findings]
        message = "; ".join(places) or rejection.message
        return condition(kind, False, rejection.reason, message, before=before)
    if in_force is None:
        message = "devices carry this guest's name, and no document does"
        return condition(kind, None, Reason.UNKNOWN_GUEST, message, before=before)
    reason = Reason.WITHDRAWN if in_force.withdrawn else Reason.ACCEPTED
    return condition(kind, True, reason, reason.meaning, before=before)


def _ready(disks: tuple[DiskStatus, ...], before: Condition | None) -> Condition:
    worst = min(disks, key=lambda disk: WORST_FIRST.index(disk.phase), default=None)
    if worst is None or worst.phase in AT_REST:
        message = "every disk is as its definition wants it"
        return condition(ConditionType.READY, True, Reason.AS_DESIRED, message, before=before)
    reason = worst.error.reason if worst.error else Reason.PROGRESSING
    message = f"{worst.target}: {worst.error.message if worst.error else reason.meaning}"
    return condition(ConditionType.READY, False, reason, message, before=before)
