"""Requests to hold a disk still while somebody copies its image: `<runtime>/holds/<disk id>`, each until a time.

They come from `tapster quiesce`. One that was taken back or is over lets the disk go on, whether or not an agent ran
meanwhile.
"""

import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from reconcilers.requests import Requests
from reconcilers.spec import DiskKey


class HoldRequest(BaseModel):
    """One request.

    Attributes:
        ends: Seconds on the clock that no one sets and that goes on while the host sleeps (CLOCK_BOOTTIME); the
            runtime folder does not outlive a boot either.
        until: The same time for people.
    """

    model_config = ConfigDict(frozen=True)

    ends: float
    until: str


class HoldRequests(Requests[HoldRequest]):
    """The requests on this host."""

    def __init__(self, runtime: Path) -> None:
        super().__init__(runtime / "holds", HoldRequest)

    def until(self, key: DiskKey) -> str | None:
        """Until when a disk is to be held, for people; None if it is not, or not any more."""
        request = self.read(key)
        return request.until if request and time.clock_gettime(time.CLOCK_BOOTTIME) < request.ends else None
