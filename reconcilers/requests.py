"""What somebody on this host asks of the agent: a file for each disk, in a folder of the runtime folder.

Nothing of it comes over the bus, so that who asks has to be root here; and it is there for the next agent, too.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from asyncinotify import Inotify, Mask
from pydantic import BaseModel

from reconcilers import record_file
from reconcilers.spec import DiskKey
from reconcilers.tag import disk_id

Request = TypeVar("Request", bound=BaseModel)


class Requests(Generic[Request]):
    """The requests of one kind on this host."""

    def __init__(self, folder: Path, kind: type[Request]) -> None:
        self.folder = folder
        self._prefix = str(folder)
        self._kind = kind

    def path(self, key: DiskKey) -> Path:
        """Where a disk's request is."""
        return Path(self._name(key))

    def _name(self, key: DiskKey) -> str:
        return f"{self._prefix}/{disk_id(key)}"

    def leave(self, key: DiskKey, request: Request) -> None:
        """Ask."""
        record_file.write(self._name(key), request)

    def read(self, key: DiskKey) -> Request | None:
        """What is asked; None if nothing is."""
        return record_file.read(self._name(key), self._kind)

    def forget(self, key: DiskKey) -> None:
        """Nobody asks any more."""
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
