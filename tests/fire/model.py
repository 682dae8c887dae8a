"""What should be on the host after what was done to it, and whether it is."""

from collections.abc import Iterator
from dataclasses import dataclass

from reconcilers.actual import FileId
from reconcilers.spec import DiskKey
from reconcilers.tag import disk_id
from tests.fire.images import Images
from tests.fire.seen import Device, Seen, look
from tests.workbench import Bench, loop_disk, tap_disk

KINDS = ("loop", "aio", "qcow2")


@dataclass(frozen=True)
class Wanted:
    """A disk as a document asks for it. A raw image is for loop and aio, the others have one backend."""

    image: str
    kind: str
    read_only: bool

    def element(self, target: str, images: Images) -> str:
        """Its `<disk>`."""
        more = "<readonly/>" if self.read_only else ""
        path = images.path(self.image)
        return loop_disk(target, path, more) if self.kind == "loop" else tap_disk(target, path, self.kind, more)


@dataclass
class Holder:
    """Somebody who has a disk open; `dead` once its server was killed."""

    fd: int
    device: Device
    dead: bool = False


class Model:
    """Documents, holders and foreign devices. Of several who want an image, one must get it; who is open."""

    def __init__(self, bench: Bench, images: Images) -> None:
        self.bench = bench
        self.images = images
        self.wanted: dict[DiskKey, Wanted] = {}
        self.generations: dict[str, int] = {}
        self.holders: dict[DiskKey, Holder] = {}
        self.foreign: dict[str, tuple[str, FileId]] = {}
        self.keys: set[DiskKey] = set()

    def wrong(self) -> str | None:
        """What is not yet, or not, as it should be; None if everything is."""
        if told := next(self._status_wrong(), None):
            return told  # cheap, and opens no device that is just being taken down
        try:
            seen = self.look()
        except AssertionError as error:
            return str(error)
        return next(self._wrong(seen), None)

    def look(self) -> Seen:
        """What there is."""
        return look(self.bench, self.images.contents)

    def device(self, key: DiskKey, seen: Seen) -> Device | None:
        """A disk's device."""
        return seen.devices.get(disk_id(key))

    def fits(self, key: DiskKey, device: Device | None) -> bool:
        """Whether a disk is as its document asks."""
        want = self.wanted.get(key)
        if want is None or device is None or device.dead:
            return False
        content = self.images.content(want.image)
        return (
            device.image == self.images.identity(want.image)
            and device.tap == (want.kind != "loop")
            and device.read_only == want.read_only
            and device.size == content.size
        )

    def _status_wrong(self) -> Iterator[str]:
        for guest, generation in self.generations.items():
            if (observed := self.bench.statuses.get(guest, {}).get("observed_generation")) != generation:
                yield f"of {guest}, generation {observed} is observed and not {generation}"
        for key in self.keys:
            phase = self._phase(key)
            if self.wanted.get(key) is None and key not in self.holders and phase not in {None, "Down"}:
                yield f"{key} is {phase} and not wanted"
            if self.wanted.get(key) and phase in {None, "Down", "Pending", "Attaching", "Detaching", "Failed"}:
                yield f"{key} is {phase} and wanted"

    def _phase(self, key: DiskKey) -> str | None:
        return self.bench.disk(key.guest, key.target).get("phase")

    def _wrong(self, seen: Seen) -> Iterator[str]:
        known = {disk_id(key) for key in self.keys}
        if strangers := (seen.devices.keys() | seen.servers.keys() | seen.taps) - known:
            yield f"these belong to no disk: {strangers}"
        yield from self._wrong_files(seen)
        yield from self._attached_twice(seen)
        for key in sorted(self.keys):
            device = self.device(key, seen)
            if told := self._wrong_disk(key, device, seen):
                yield f"{key} {told}; it is wanted as {self.wanted.get(key)}, is {self._phase(key)} and has {device}"

    def _wrong_files(self, seen: Seen) -> Iterator[str]:
        taps = {disk for disk, device in seen.devices.items() if device.tap}
        # The mount of a server that was killed goes with its jail, and stays where there is none.
        if seen.taps != taps or not len(seen.servers) <= seen.mounts <= len(taps):
            yield f"tap folders {seen.taps} and {seen.mounts} mounts for the taps {taps}"
        if alive := seen.servers.keys() - taps:
            yield f"servers without a device: {alive}"
        links = {str(key): device.path for key in self.keys if (device := self.device(key, seen)) and not device.dead}
        if seen.links != links:
            yield f"links {seen.links} and not {links}"

    def _attached_twice(self, seen: Seen) -> Iterator[str]:
        alive = [device for device in seen.devices.values() if device.image is not None]
        for number, one in enumerate(alive):
            for other in alive[number + 1 :]:
                if one.image == other.image and not (one.read_only and other.read_only):
                    yield f"{one} and {other} are on one image"

    def _wrong_disk(self, key: DiskKey, device: Device | None, seen: Seen) -> str | None:
        if holder := self.holders.get(key):
            return self._wrong_held(key, device, holder, seen)
        phase, want = self._phase(key), self.wanted.get(key)
        if want is None:
            return "is there" if device else None
        if self.fits(key, device):
            told = self.bench.disk(key.guest, key.target)
            shown = device and (told["device_path"], told["diskseq"], told["size_bytes"]) == (
                *(device.path, device.diskseq),
                device.size,
            )
            return None if phase == "Up" and shown else f"is told of as {told}"
        if not self._taken(key, want, seen):
            return "could be as wanted, and is not"
        if device and device.dead:
            return "is dead, and nobody has it open"
        return None if phase == "Refused" else "should be refused"

    def _wrong_held(self, key: DiskKey, device: Device | None, holder: Holder, seen: Seen) -> str | None:
        phase, want = self._phase(key), self.wanted.get(key)
        if device is None or (device.path, device.diskseq) != (holder.device.path, holder.device.diskseq):
            return f"was taken from who has it open: {holder}"
        if holder.dead or device.dead:
            return None if phase == "Lost" and device.dead and holder.dead else "should be lost"
        if device.image != holder.device.image:
            return f"has another image under who has it open: {holder}"
        if self.fits(key, device):
            return None if phase == "Up" else "should be up"
        blocked = {"InUse", "Refused"} if want and self._taken(key, want, seen) else {"InUse"}
        return None if phase in blocked else f"should be one of {blocked}"

    def _taken(self, key: DiskKey, want: Wanted, seen: Seen) -> bool:
        """Whether others have what a disk wants, in a way that does not go with it."""
        identity = self.images.identity(want.image)
        if any(identity == image for _, image in self.foreign.values()):
            return True
        others = (self.device(other, seen) for other in self.keys - {key})
        return any(
            other is not None and other.image == identity and not (want.read_only and other.read_only)
            for other in others
        )
