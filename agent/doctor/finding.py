"""What a check found."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

GUIDES = "in deploy/ or /usr/share/doc/tapster"
"""Where the guides and the broker kit are: in a checkout, or on a host with the package."""


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What was looked at, in a word or two.
        level: How bad it is.
        message: What was found, in a sentence.
        mend: The command that mends it, or what else to do; None where nothing is to be done.
    """

    subject: str
    level: Level
    message: str
    mend: str | None = None


Findings = Iterator[Finding]


def ok(subject: str, message: str) -> Finding:
    """All is well."""
    return Finding(subject, Level.OK, message)


def warning(subject: str, message: str, mend: str) -> Finding:
    """It works, and may not for ever."""
    return Finding(subject, Level.WARNING, message, mend)


def problem(subject: str, message: str, mend: str) -> Finding:
    """It does not work."""
    return Finding(subject, Level.PROBLEM, message, mend)


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing is a problem."""
    return all(finding.level is not Level.PROBLEM for finding in findings)
