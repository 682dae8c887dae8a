"""Finds disks that have requests in flight and finish none: their server is stopped, or the storage under it hangs."""

from collections.abc import Mapping
from pathlib import Path

from reconcilers.spec import DiskKey

# Fields of /sys/block/<device>/stat (Documentation/block/stat.rst): finished reads, writes, discards and flushes. The
# times beside them go on while nothing is finished.
_FINISHED = (0, 4, 11, 15)


class StallWatch:
    """Compares two looks at sysfs, some seconds apart. Nothing of the disk itself is touched, so no look can hang."""

    def __init__(self) -> None:
        self._before: dict[DiskKey, tuple[str, ...]] = {}
        self._told: set[DiskKey] = set()

    def look(self, devices: Mapping[DiskKey, str]) -> list[DiskKey]:
        """The disks that have not finished a request since the last look, each told once until it goes on.

        Args:
            devices: The node of each disk that is up.
        """
        now = {key: counts for key, node in devices.items() if (counts := _waiting(Path(node).name))}
        stalled = {key for key, counts in now.items() if self._before.get(key) == counts}
        news = sorted(stalled - self._told)
        self._before, self._told = now, stalled
        return news


def _waiting(device: str) -> tuple[str, ...] | None:
    """What the device has finished so far, if it has requests in flight."""
    folder = Path("/sys/block", device)
    try:
        if not any(map(int, (folder / "inflight").read_text(encoding="ascii").split())):
            return None
        fields = (folder / "stat").read_text(encoding="ascii").split()
    except OSError:  # it is gone
        return None
    return tuple(fields[position] for position in _FINISHED if position < len(fields))
