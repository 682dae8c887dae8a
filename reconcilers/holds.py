"""Requests to hold a disk still while somebody copies its image: `<runtime>/holds/<disk id>`, each until a time.

They come from the host itself (`tapster quiesce`) and never over the bus: who can freeze guests has to be root here.
A request that was taken back or is over lets the disk go on, whether or not an agent ran meanwhile.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from asyncinotify import Inotify, Mask
from pydantic import BaseModel, ConfigDict, ValidationError

from reconcilers.spec import DiskKey
from reconcilers.tag import disk_id


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


class HoldRequests:
    """The requests on this host."""

    def __init__(self, runtime: Path) -> None:
        self.folder = runtime / "holds"

    def path(self, key: DiskKey) -> Path:
        """Where a disk's request is."""
        return self.folder / disk_id(key)

    def until(self, key: DiskKey) -> str | None:
        """Until when a disk is to be held, for people; None if it is not, or not any more."""
        try:
            request = HoldRequest.model_validate_json(self.path(key).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return request.until if time.clock_gettime(time.CLOCK_BOOTTIME) < request.ends else None

    def forget(self, key: DiskKey) -> None:
        """The disk goes on."""
        self.path(key).unlink(missing_ok=True)


class RequestEvents:
    """Calls `on_change` with the id of the disk whose request came or went. Use it in a running event loop."""

    def __init__(self, folder: Path, on_change: Callable[[str], None]) -> None:
        self._folder = folder
        self._on_change = on_change

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._inotify = Inotify()
        self._inotify.add_watch(self._folder, Mask.MOVED_TO | Mask.DELETE)
        self._reading = asyncio.create_task(self._read(), name=f"requests in {self._folder}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        self._inotify.close()

    async def _read(self) -> None:
        with suppress(asyncio.CancelledError):
            async for event in self._inotify:
                self._on_change(str(event.name))
