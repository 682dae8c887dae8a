"""The one exception by which this floor says no."""

from reconcilers.holders import DeviceHolders
from reconcilers.reason import Reason


class DiskError(Exception):
    """A step that could not be taken, with the reason for programs and a sentence for people.

    Attributes:
        reason: The word for the status; `reason.transient` tells whether time alone can mend it.
        message: Names the thing, what is wrong with it and what would be right.
        holders: Who has the disk's own device, where that is why.
    """

    def __init__(self, reason: Reason, message: str, holders: DeviceHolders | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.holders = holders
