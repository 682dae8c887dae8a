"""Label selectors, as kubectl has them: `site=ams,rack!=12,tier in (gold, silver),!spare`. Pure.

The grammar is that of Kubernetes (https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/): what
stands between commas must all hold, and a host without the label satisfies `!=` and `notin`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

KEY = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"
"""Pattern of a label's name."""

TEXT = r"[A-Za-z0-9._/-]{0,63}"
"""Pattern of a label's text."""

_EQUALS = re.compile(rf"({KEY})\s*(==|=|!=)\s*({TEXT})")
_SET = re.compile(rf"({KEY})\s+(in|notin)\s+\(\s*({TEXT}(?:\s*,\s*{TEXT})*)\s*\)")
_EXISTS = re.compile(rf"(!?)\s*({KEY})")
_COMMAS = re.compile(r",(?![^(]*\))")

FORMS = "site=ams, rack!=12, 'tier in (gold, silver)', 'tier notin (test)', spare, '!spare'"


class SelectorError(ValueError):
    """The text is no selector. The message says which part, and what would be one."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label.

    Attributes:
        label: The label's name.
        among: The texts that are meant; None stands for whatever text it has.
        wanted: Whether the label must be so, or must not.
    """

    label: str
    among: frozenset[str] | None
    wanted: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a host with these labels satisfies it."""
        is_so = self.label in labels and (self.among is None or labels[self.label] in self.among)
        return is_so is self.wanted


@dataclass(frozen=True, slots=True)
class Selector:
    """Conditions that must all hold."""

    text: str
    requirements: tuple[Requirement, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a host with these labels is meant."""
        return all(requirement.holds(labels) for requirement in self.requirements)


def parse_selector(text: str) -> Selector:
    """Read a selector.

    Raises:
        SelectorError: It is empty, or a part of it is no condition.
    """
    return Selector(text, tuple(_requirements(text)))


def _requirements(text: str) -> Iterator[Requirement]:
    for part in _COMMAS.split(text):
        yield _requirement(part.strip(), text)


def _requirement(part: str, text: str) -> Requirement:
    if found := _EQUALS.fullmatch(part):
        label, operator, value = found.groups()
        return Requirement(label, frozenset((value,)), operator != "!=")
    if found := _SET.fullmatch(part):
        label, operator, values = found.groups()
        return Requirement(label, frozenset(map(str.strip, values.split(","))), operator == "in")
    if found := _EXISTS.fullmatch(part):
        negated, label = found.groups()
        return Requirement(label, None, not negated)
    what = f"{part!r} in {text!r}" if part else f"an empty part of {text!r}"
    raise SelectorError(
        f"{what} is no condition on a label; write {FORMS}, with commas between those that must all hold"
    )
