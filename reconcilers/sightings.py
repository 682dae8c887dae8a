"""What was seen of each disk of this host when it was looked at last. Any thread may ask and add."""

from reconcilers.actual import Attached
from reconcilers.spec import Backend, DiskKey
from reconcilers.tag import disk_id


class Sightings:
    """Which disks there are, by their ids too, and what is there of them.

    Attributes:
        suspects: Disks whose server has requests to do and has finished none for a while.
    """

    def __init__(self) -> None:
        self.suspects: set[DiskKey] = set()
        self._keys: dict[str, DiskKey] = {}
        self._attached: dict[DiskKey, Attached] = {}
        self._passed_through: dict[DiskKey, str] = {}

    def expect(self, key: DiskKey) -> None:
        """A disk is about to be looked at; from now on `key_of` knows it."""
        self._keys[disk_id(key)] = key

    def note(self, key: DiskKey, attached: Attached | None) -> None:
        """A disk was looked at: this is there of it."""
        if attached:
            self._attached[key] = attached
        else:
            self._attached.pop(key, None)
        if attached and attached.backend is Backend.BLOCK and attached.device_path:
            self._passed_through[key] = attached.device_path
        else:
            self._passed_through.pop(key, None)

    def key_of(self, disk: str) -> DiskKey | None:
        """The disk with this id; None where none such was ever looked at."""
        return self._keys.get(disk)

    def passed_through(self, node: str) -> list[DiskKey]:
        """The disks that were passed this device of the host's. Kept apart, as the kernel tells of every device."""
        return [key for key, device in list(self._passed_through.items()) if device == node]

    def of(self, key: DiskKey) -> Attached | None:
        """What was there of a disk."""
        return self._attached.get(key)

    def all(self) -> list[tuple[DiskKey, Attached]]:
        """Every disk of which something was there."""
        return list(self._attached.items())
