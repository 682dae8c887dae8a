"""The contract of a tap's server: one process that opens one disk's image and exports what is in it."""

from collections.abc import Sequence
from typing import Protocol

from reconcilers.blktap.kinds import DeviceKind
from reconcilers.blktap.tap import TapFolder
from reconcilers.source import OpenSource
from reconcilers.spec import DiskSpec, Format
from reconcilers.tuning import Limits, Tuning


class TapServer(Protocol):
    """Starts, asks and stops one kind of server. What it knows of each is in the tap's folder, never in memory.

    Every method takes `within`, the seconds after which it gives up, and raises `DiskError` when it can't do its
    work: ServerFailed with the server's last log lines, or TimedOut.

    Attributes:
        version: The program's name and version, for people.
        formats: What it really opens.
    """

    version: str
    formats: frozenset[Format]

    def lacks(self, spec: DiskSpec) -> str | None:
        """What it can't do of that which the spec must have, in words; None if it can serve it."""

    def grant(self, spec: DiskSpec, image: OpenSource, device: DeviceKind) -> Tuning:
        """What of the spec's tuning can be had for its image over such a device. Blocks; call it in a thread.

        Raises:
            DiskError: The image is none for this server.
        """

    async def spawn(self, tap: TapFolder, image_fds: Sequence[int], *, within: float) -> None:
        """Start the server of a prepared tap over the locked image, and wait until its export is there.

        Args:
            tap: Prepared, with its record.
            image_fds: The image's, and those of the images below it, the uppermost first. The server inherits them;
                close them afterwards, so that the locks' life is the server's.
            within: See above. A server that is not ready by then is ended.
        """

    async def ready(self, tap: TapFolder, *, within: float) -> None:
        """Wait until the export of a server that was started is there."""

    async def answers(self, tap: TapFolder, *, within: float) -> bool:
        """Whether that through which all requests go answers."""

    async def set_limits(self, tap: TapFolder, limits: Limits, *, within: float) -> None:
        """Give a server that takes limits others, or none, online."""

    async def resize(self, tap: TapFolder, size_bytes: int, *, within: float) -> None:
        """Have a server make its image larger; one that is as large already stays so."""

    async def hold(self, tap: TapFolder, *, within: float) -> None:
        """Keep the server from writing, and have all that it wrote on the disk; what is asked of it waits."""

    async def release(self, tap: TapFolder, *, within: float) -> None:
        """Let a server go on that may be held."""

    async def stop(self, tap: TapFolder, *, within: float) -> None:
        """Have the server flush and end, and wait until it has. The device over its export is gone by now.

        It is not killed when it does not end, since what it has not flushed would be lost.
        """
