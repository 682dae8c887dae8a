"""Finds disks that have requests in flight and finish none: their server is stopped, or the storage under it hangs."""

from collections.abc import Mapping
from pathlib import Path

from reconcilers.spec import DiskKey

_STATISTICS = Path("/proc/diskstats")
"""Every device of the host in one read; in sysfs, a thousand disks would be most of what an idle agent costs."""

# Fields of a line (Documentation/admin-guide/iostats.rst). What is finished are reads, writes, discards and flushes;
# the times beside them go on while nothing is.
_NAME, _IN_FLIGHT = 2, 11
_FINISHED = (3, 7, 14, 18)


class StallWatch:
    """Compares two looks at the kernel's statistics, some seconds apart. No disk is touched, so no look can hang."""

    def __init__(self) -> None:
        self._before: dict[DiskKey, tuple[bytes, ...]] = {}
        self._told: set[DiskKey] = set()

    def look(self, devices: Mapping[DiskKey, str]) -> list[DiskKey]:
        """The disks that have not finished a request since the last look, each told once until it goes on.

        Args:
            devices: The node of each disk that is up.
        """
        waiting = _waiting()
        named = ((key, waiting.get(node.rpartition("/")[2].encode())) for key, node in devices.items())
        now = {key: finished for key, finished in named if finished}
        stalled = {key for key, finished in now.items() if self._before.get(key) == finished}
        news = sorted(stalled - self._told)
        self._before, self._told = now, stalled
        return news


def _waiting() -> dict[bytes, tuple[bytes, ...]]:
    """What the devices with requests in flight have finished so far, by the kernel's names."""
    lines = (line.split() for line in _STATISTICS.read_bytes().splitlines())
    return {
        fields[_NAME]: tuple(fields[position] for position in _FINISHED if position < len(fields))
        for fields in lines
        if fields[_IN_FLIGHT] != b"0"
    }
