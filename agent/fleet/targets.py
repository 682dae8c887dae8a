"""Whom an operator means: hosts by name, by label or all of them, or the hosts of a group. Pure.

Hosts are known by their retained birth messages, so a host that is away is meant as well as one that is online; one
that was never in the fleet can only be meant by its name.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.bus.topics import EVERY_HOST, FleetTopics
from agent.fleet.selector import Selector, parse_selector
from agent.fleet.words import NAMED_AT_MOST, counted, names
from agent.status import AgentState


class TargetError(Exception):
    """Nobody is meant, or it can't be told who. The message says what there is and what to write instead."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What was asked for: one kind of it, never a mixture.

    Attributes:
        hosts: By name.
        selector: By label.
        group: The group's standing documents, which hosts that join later get too.
        every: Every host that has ever been in the fleet.
    """

    hosts: tuple[str, ...] = ()
    selector: Selector | None = None
    group: str | None = None
    every: bool = False

    @property
    def one_host(self) -> str | None:
        """The host, where exactly one was named."""
        return self.hosts[0] if len(self.hosts) == 1 else None

    def __str__(self) -> str:
        if self.group is not None:
            return f"--group {self.group}"
        if self.selector is not None:
            return f"-l '{self.selector.text}'"
        return "--all" if self.every else " ".join(f"--host {host}" for host in self.hosts)


def selection(hosts: Sequence[str], selectors: Sequence[str], group: str | None, every: bool) -> Selection | None:
    """What the options mean; None where none was given.

    Raises:
        TargetError: Options of more than one kind were given.
        SelectorError: A selector can't be read.
    """
    given = {"--host": hosts, "-l": selectors, "--group": group, "--all": every}
    names = [name for name, value in given.items() if value]
    if len(names) > 1:
        raise TargetError(
            f"{' and '.join(names)} say in different ways who is meant; give one of them (several conditions on labels "
            "go into one -l, with commas between)"
        )
    if not names:
        return None
    selector = parse_selector(",".join(selectors)) if selectors else None
    return Selection(tuple(dict.fromkeys(hosts)), selector, group, every)


@dataclass(frozen=True, slots=True)
class Target:
    """One host that is meant, and its birth message; None where it never sent one."""

    host: str
    agent: AgentState | None

    @property
    def online(self) -> bool:
        """Whether its agent is connected."""
        return self.agent is not None and self.agent.state == "online"

    @property
    def state(self) -> str:
        """Its agent's state in a word or three."""
        return self.agent.state if self.agent else "unknown to the fleet"

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""
        return self.agent.labels if self.agent else {}


def resolve(wanted: Selection, births: Mapping[str, AgentState], fleet: str) -> list[Target]:
    """The hosts that are meant, by name. Of a group, those that say that they follow it now.

    Args:
        wanted: What was asked for.
        births: The birth message of every host of the fleet.
        fleet: The fleet's name, for messages.

    Raises:
        TargetError: Nobody is meant.
    """
    if wanted.hosts:
        return [Target(host, births.get(host)) for host in wanted.hosts]
    if not births:
        raise TargetError(f"no host has ever been in fleet {fleet!r}; start an agent with `tapster run`")
    found = [Target(host, agent) for host, agent in sorted(births.items()) if is_meant(wanted, agent)]
    if not found:
        raise TargetError(_nobody(wanted, births, fleet))
    return found


def is_meant(wanted: Selection, agent: AgentState) -> bool:
    """Whether a host is meant by its label, its group or because all are."""
    if wanted.group is not None:
        return wanted.group == EVERY_HOST or wanted.group in agent.groups
    return wanted.every or (wanted.selector is not None and wanted.selector.matches(agent.labels))


def known(targets: Sequence[Target], fleet: str) -> list[Target]:
    """The same targets, if all have been in the fleet.

    Raises:
        TargetError: One has not.
    """
    strangers = [target.host for target in targets if target.agent is None]
    if strangers:
        raise TargetError(
            f"{names(strangers)} never was in fleet {fleet!r}; `tapster get hosts` lists the hosts that there are"
        )
    return list(targets)


def silence(hosts: Iterable[str], targets: Iterable[Target]) -> Iterator[str]:
    """A line about those of the targets that gave no answer, for each state that they are in."""
    states = {target.host: target.state for target in targets}
    away = defaultdict[str, list[str]](list)
    for host in hosts:
        away[states.get(host, "unknown")].append(host)
    for state, those in sorted(away.items()):
        yield f"silent: {names(those)}: {why_silent(state)}"


def why_silent(state: str) -> str:
    """Why there is no answer of a host in that state."""
    return "did not answer in time: look at the agent's log there" if state == "online" else f"not asked, {state}"


def check_names(wanted: Selection, topics: FleetTopics) -> None:
    """Raise TopicError if a name can't be a topic's level, before anything is done."""
    for host in wanted.hosts:
        topics.of(host)
    if wanted.group is not None:
        topics.group_filter(wanted.group)


def _nobody(wanted: Selection, births: Mapping[str, AgentState], fleet: str) -> str:
    """Why nobody is meant: what the labels in question are on the hosts that there are."""
    hosts = f"the {counted(len(births), 'host')} of fleet {fleet!r}"
    if wanted.selector is None:
        groups = sorted({group for agent in births.values() for group in agent.groups})
        there = f"they follow {', '.join(groups)}" if groups else "they follow no group besides the built-in 'all'"
        return f"none of {hosts} follows group {wanted.group!r}; {there} (setting `groups`)"
    facts = [_fact(requirement.label, births) for requirement in wanted.selector.requirements]
    return (
        f"none of {hosts} matches -l '{wanted.selector.text}'; {'; '.join(dict.fromkeys(facts))}; "
        "`tapster get hosts -o wide` shows all labels"
    )


def _fact(label: str, births: Mapping[str, AgentState]) -> str:
    texts = Counter(agent.labels[label] for agent in births.values() if label in agent.labels)
    if not texts:
        return f"no host has a label {label!r}"
    shown = [f"{text or repr(text)} ({count})" for text, count in texts.most_common(NAMED_AT_MOST)]
    more = f" and {len(texts) - len(shown)} other texts" if len(texts) > len(shown) else ""
    return f"label {label!r} is {', '.join(shown)}{more}"
