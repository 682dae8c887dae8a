"""What would happen if a definition came into force: the same `plan`, and no effect."""

from collections.abc import Iterable

from agent.controller import DiskHost
from agent.definition import GuestDefinition
from agent.desired import Desired, DesiredWorld, Gone, GuestInForce, HandsOff
from agent.document import DesiredDocument, Scope
from agent.events import FindingData
from agent.status import Status
from reconcilers.plan import Step, plan
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey


class PlannedStep(Status):
    """What would be done about one disk.

    Attributes:
        target: The disk.
        step: A word: nothing, keep, refuse, unlink, attach, adopt, grow, tune, quiesce, resume, revive,
            replace or detach.
        reason: Why, in a word, where there is one.
        message: Why, in a sentence, where there is more to say.
    """

    target: str
    step: str
    reason: Reason | None
    message: str | None


class GuestPlan(Status):
    """What would be done about one guest on one host."""

    host: str
    guest: str | None
    steps: tuple[PlannedStep, ...]
    errors: tuple[FindingData, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether anything would not come up."""
        return bool(self.errors) or any(step.step in {"refuse", "keep"} for step in self.steps)


async def preview(host: DiskHost, host_name: str, definition: GuestDefinition, present: Iterable[DiskKey]) -> GuestPlan:
    """Plan a guest's disks.

    Args:
        host: Only observed.
        host_name: For the answer.
        definition: What would come into force.
        present: Disks of the guest that are there now.
    """
    world = DesiredWorld(host=host_name, groups=(), partial=True)
    world.put(GuestInForce(document=_document(host_name, definition.name), definition=definition))
    named = [DiskKey(definition.name, disk.target) for disk in definition.disks if disk.target]
    keys = dict.fromkeys([*named, *sorted(present)])
    steps = [_planned(key, *await _decide(host, world.desired(key), key)) for key in keys]
    findings = [finding for disk in definition.disks for finding in disk.refused]
    return GuestPlan(
        host=host_name,
        guest=definition.name,
        steps=tuple(steps),
        errors=tuple(FindingData.of(finding) for finding in findings),
    )


def _document(host_name: str, guest: str) -> DesiredDocument:
    scope = Scope("host", host_name)
    return DesiredDocument(scope=scope, guest=guest, generation=None, state="present", sha256="", body=b"")


async def _decide(host: DiskHost, desired: Desired, key: DiskKey) -> tuple[str, Reason | None, str | None]:
    if isinstance(desired, HandsOff):
        return "refuse", desired.reason, desired.message
    spec = None if isinstance(desired, Gone) else desired
    step = plan(spec, await host.observe(key, spec.source if spec else None))
    return type(step).__name__.lower(), getattr(step, "reason", None), _words(step)


def _words(step: Step) -> str | None:
    return getattr(step, "message", None) or getattr(step, "why", None)


def _planned(key: DiskKey, step: str, reason: Reason | None, message: str | None) -> PlannedStep:
    return PlannedStep(target=key.target, step=step, reason=reason, message=message)
