"""What came of one look at a disk."""

from dataclasses import dataclass

from reconcilers.actual import Actual
from reconcilers.plan import Step


@dataclass(frozen=True, slots=True)
class Look:
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
