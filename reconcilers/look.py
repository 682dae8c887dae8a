"""What came of a look at a disk, or at the whole host."""

from dataclasses import dataclass
from typing import NamedTuple

from reconcilers.actual import Actual
from reconcilers.plan import Step


class Look(NamedTuple):
    """What a disk is and what is to be done next.

    Attributes:
        actual: What it is, after what was done.
        step: What comes next.
        done: The step that was taken in the same visit, if one was.
        warning: What people should know of that.
    """

    actual: Actual
    step: Step
    done: Step | None = None
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Orphan:
    """Something with our mark whose disk can't be named any more, since only its shortened label is left."""

    label: str
    device_path: str
