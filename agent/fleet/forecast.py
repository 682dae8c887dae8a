"""What a fleet says it would do, put together from the answers of its hosts. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agent.fleet.targets import Target, silence
from agent.fleet.words import NAMED_AT_MOST, counted, names, printable
from agent.preview import GuestPlan, PlannedStep
from reconcilers.reason import Reason

NOT_DONE = frozenset({"refuse", "keep"})
"""Steps that bring a disk not to where the definition wants it."""


@dataclass(slots=True)
class Forecast:
    """The answers so far.

    Attributes:
        asked: Every host and guest that was asked about.
        plans: The answers, in the order of their arrival.
        unreadable: Hosts whose answer is none that this version knows, and why.
    """

    asked: frozenset[tuple[str, str]]
    plans: list[GuestPlan] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def unanswered(self) -> list[tuple[str, str]]:
        """Hosts and guests about which there is no answer that can be read."""
        return sorted(self.asked - {(plan.host, plan.guest) for plan in self.plans})

    @property
    def silent(self) -> list[str]:
        """Hosts that did not answer about every guest."""
        return sorted({host for host, _ in self.unanswered} - self.unreadable.keys())

    @property
    def well(self) -> bool:
        """Whether every host answered and none would refuse anything."""
        return not (self.silent or self.unreadable or any(plan.refused for plan in self.plans))

    def steps(self) -> Counter[str]:
        """How many disks each step would be done to; what is refused, in whatever way, is `refused`."""
        counts = Counter(_word(step) for plan in self.plans for step in plan.steps)
        counts["refused"] += sum(len(plan.errors) for plan in self.plans if not plan.steps)
        return +counts

    def refusals(self) -> dict[Reason, dict[str, list[str]]]:
        """Hosts by why they would refuse something, in a word and in a sentence."""
        found = defaultdict[Reason, defaultdict[str, list[str]]](lambda: defaultdict(list))
        for plan in sorted(self.plans, key=lambda plan: plan.host):
            for reason, message in dict.fromkeys(_refusals(plan)):
                found[reason][message].append(plan.host)
        return {reason: dict(messages) for reason, messages in found.items()}


def summary(forecast: Forecast, targets: Iterable[Target]) -> Iterator[str]:
    """What comes of it, in lines: counts first, then why something is refused, then who is silent."""
    counts = forecast.steps()
    refused = counts.pop("refused", 0)
    words = [f"{step} {count}" for step, count in counts.most_common()]
    words += [f"refused {refused}"] if refused else []
    words += [f"silent {len(forecast.silent)}"] if forecast.silent else []
    words += [f"unreadable {len(forecast.unreadable)}"] if forecast.unreadable else []
    hosts = {host for host, _ in forecast.asked}
    answered = len(hosts) - len(forecast.silent) - len(forecast.unreadable)
    yield f"{answered} of {counted(len(hosts), 'host')} answered: {', '.join(words) or 'no disks'}"
    for reason, messages in sorted(forecast.refusals().items(), key=lambda item: -sum(map(len, item[1].values()))):
        yield from _refused(reason, sorted(messages.items(), key=lambda item: -len(item[1])))
    yield from (f"  {line}" for line in silence(forecast.silent, targets))
    for host, why in sorted(forecast.unreadable.items()):
        yield printable(f"  unreadable: {host}: {why}")


def _refused(reason: Reason, messages: list[tuple[str, list[str]]]) -> Iterator[str]:
    """Of one reason, some sentences: with a template each host has its own, and there may be thousands."""
    for message, those in messages[:NAMED_AT_MOST]:
        yield printable(f"  refused on {names(those)}: {reason}: {message}")
    if rest := sorted({host for _, those in messages[NAMED_AT_MOST:] for host in those}):
        yield f"  refused on {counted(len(rest), 'more host')}: {reason}: {names(rest)}"
    yield f"    what to do: {reason.remedy}"


def line(plan: GuestPlan) -> str:
    """One answer in a line: `db1: web1: attach vda vdb, nothing vdc`."""
    by_step = defaultdict[str, list[str]](list)
    for step in plan.steps:
        by_step[_word(step)].append(step.target)
    words = [f"{step} {' '.join(targets)}" for step, targets in by_step.items()]
    words += [f"refused: {error.reason}" for error in plan.errors if not plan.steps]
    return printable(f"{plan.host}: {plan.guest or '-'}: {', '.join(words) or 'no disks'}")


def _word(step: PlannedStep) -> str:
    return "refused" if step.step in NOT_DONE else step.step


def _refusals(plan: GuestPlan) -> Iterator[tuple[Reason, str]]:
    for step in plan.steps:
        if step.step in NOT_DONE and step.reason is not None:
            yield step.reason, step.message or step.reason.meaning
    if not plan.steps:
        yield from ((error.reason, error.message) for error in plan.errors)
