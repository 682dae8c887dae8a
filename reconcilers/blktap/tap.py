"""A tap's runtime folder, `<runtime>/taps/<disk id>`: all that is known of one server, on disk and in the kernel.

    tap.json   what it serves, written before the server starts
    lock       flock(2)ed by an open file that only the server has inherited: locked means it lives
    pid        of the server, written when it was started
    qmp.sock   its control socket
    events.sock  where it tells what happens to it
    damage     what it said of a corrupt image, if it said so
    held       there while the server is kept from writing: `begun` and then `done`
    export     the mount point of its FUSE export, a regular file of this name in its jail
    nbd.sock   where it speaks NBD, for a device of the kernel's nbd or for a relay
    shown      size and sector of what a hypervisor finds at the socket that it is given, while it may connect
    hidden     the same while the disk is taken down
    marker     of a tapdisk: links to the marker of its minor
    relay/     of a tapdisk whose device needs a FUSE export: the storage daemon in front of it, a tap of its own
    reconnecting  there while a device waits for its next server
    log        what it printed

Liveness is the lock and never a process id alone: ids are reused, an inherited lock can't be.
"""

import errno
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from reconcilers import record_file
from reconcilers.actual import FileId
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.errors import DiskError
from reconcilers.flock import is_locked
from reconcilers.holders import holders_of_path
from reconcilers.mounts import unmount_lazily
from reconcilers.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey, Format
from reconcilers.tag import disk_id
from reconcilers.tuning import Tuning

TAPS = "taps"
"""What the folder of all taps is called."""

SOCKETS = "sockets"
"""What the folder beside it is called, where hypervisors find sockets: a tap's own folder is nothing for them."""

_RECORD = "tap.json"
_EXPORT = "export"


class TapLayer(BaseModel):
    """An image below the one that a tap serves; the fields are those of `TapRecord`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str
    device: int
    inode: int
    format: Format
    raw_size: int | None = None


class TapRecord(BaseModel):
    """What a tap serves; enough to adopt it, compare it with a definition, and name it.

    Attributes, where their names do not say it:
        device, inode: The image's (see `FileId`).
        server: The program's name and version.
        relays: The NBD socket that it serves in place of an image.
        server_kind, device_kind: The defaults are those of records from before there was a choice.
        raw_size: The image is its disk's bytes from the first on, and so many, although its format is not called raw.
        below: The images below it, the uppermost first.
        asked: What the definition wanted.
        tuning: What the host granted of it.
        throttled: Its server has a node for limits also where there are none; those of earlier versions had not.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    guest: str
    target: str
    source: str
    device: int
    inode: int
    format: Format
    read_only: bool
    slice_offset: int
    slice_size: int | None
    raw_size: int | None = None
    below: tuple[TapLayer, ...] = ()
    server: str
    server_kind: ServerKind = ServerKind.STORAGE_DAEMON
    device_kind: DeviceKind = DeviceKind.FUSE_LOOP
    relays: str | None = None
    asked: Tuning
    tuning: Tuning
    throttled: bool = False

    @property
    def takes_limits(self) -> bool:
        """Whether its server can be given other limits, or none, while it serves."""
        return self.throttled or bool(self.tuning.limits)

    @property
    def key(self) -> DiskKey:
        """The disk that the tap belongs to."""
        return DiskKey(self.guest, self.target)

    @property
    def identity(self) -> FileId:
        """The image that the tap has open."""
        return FileId(self.device, self.inode)

    @property
    def on_block_device(self) -> bool:
        """Whether the image is a block device: those have no inode of their own here (see `FileId`)."""
        return self.inode == 0


@dataclass(frozen=True, slots=True)
class TapFolder:
    """The folder of one tap, whether or not it exists."""

    path: Path
    mount_point: Path | None = None

    @classmethod
    def of(cls, taps: Path, key: DiskKey) -> "TapFolder":
        """The folder that belongs to a disk, below the folder of all taps."""
        return cls(taps / disk_id(key))

    @classmethod
    def of_export(cls, path: Path) -> "TapFolder | None":
        """The folder whose export has this path, by its layout alone; None if that is another file.

        In a jail, whose mounts are not in our tree, the kernel names a device's file as it is called in there.
        """
        return cls(path.parent) if path.name == _EXPORT and path.parent.parent.name == TAPS else None

    @property
    def name(self) -> str:
        """A word that no other tap of the host's has."""
        return f"{self.path.parent.name}-{self.path.name}" if self.mount_point else self.path.name

    @property
    def qmp(self) -> Path:
        """The control socket."""
        return self.path / "qmp.sock"

    @property
    def events(self) -> Path:
        """The socket on which it tells what happens."""
        return self.path / "events.sock"

    @property
    def export(self) -> Path:
        """Where the server mounts the disk's content as a file."""
        return self.mount_point or self.path / _EXPORT

    @property
    def nbd(self) -> Path:
        """Where the server speaks NBD."""
        return self.path / "nbd.sock"

    @property
    def socket(self) -> Path:
        """Where the server speaks NBD to a hypervisor."""
        return self.path.parent.parent / SOCKETS / self.path.name

    def listens_at(self, device: DeviceKind) -> Path | None:
        """The socket that is made for a server behind such a device; None if it speaks FUSE."""
        match device:
            case DeviceKind.NBD:
                return self.nbd
            case DeviceKind.NBD_SOCKET:
                return self.socket
            case DeviceKind.FUSE_LOOP:
                return None

    @property
    def marker(self) -> Path:
        """Links to the marker of a tapdisk's minor."""
        return self.path / "marker"

    @property
    def relay(self) -> "TapFolder":
        """The server in front of the one that has the image; most taps have none."""
        return TapFolder(self.path / "relay", self.export)

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.path / "log"

    @property
    def pid_file(self) -> Path:
        """Written once the server was started."""
        return self.path / "pid"

    @property
    def lock(self) -> Path:
        """Locked as long as the server lives."""
        return self.path / "lock"

    @property
    def _reconnecting(self) -> Path:
        return self.path / "reconnecting"

    def reconnecting(self) -> bool:
        """Whether the device waits for its server: another one was started for it and is not connected to it yet."""
        return self._reconnecting.exists()

    def connected(self) -> None:
        """The device has its server."""
        self._reconnecting.unlink(missing_ok=True)

    def renew(self, record: TapRecord) -> None:
        """Make the folder of a server that is gone ready for the next one behind the same device."""
        self._reconnecting.touch(mode=0o600)
        for path in (self.qmp, self.events, self.nbd, self.socket, self.pid_file):
            path.unlink(missing_ok=True)
        self.write(record)

    def prepare(self, record: TapRecord) -> None:
        """Make the folder and write down what shall be served, before anything runs."""
        self.path.mkdir(parents=True, mode=0o700)
        self.export.touch(mode=0o600)
        self.lock.touch(mode=0o600)
        if record.device_kind is DeviceKind.NBD_SOCKET:
            self.socket.parent.mkdir(mode=0o711, exist_ok=True)
        self.write(record)

    def write(self, record: TapRecord) -> None:
        """Write down anew what is served."""
        record_file.write(f"{self.path}/{_RECORD}", record)

    def record(self) -> TapRecord | None:
        """What the tap serves; None where there is no tap, or one whose making was cut short before it had a server."""
        return record_file.read(f"{self.path}/{_RECORD}", TapRecord)

    def note_damage(self, words: str) -> None:
        """Remember that the server found its image to be corrupt: it says so only once."""
        (self.path / "damage").write_text(words or "the server does not say how", encoding="utf-8")

    def damage(self) -> str | None:
        """What the server found wrong with its image."""
        try:
            return (self.path / "damage").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    @property
    def held_file(self) -> Path:
        """There while the server is kept from writing."""
        return self._excuses / "held"

    @property
    def record_file(self) -> Path:
        """What the disk's server serves."""
        return self._excuses / _RECORD

    @property
    def _excuses(self) -> Path:
        """A relay waits for the server behind it, so what holds that or slows it down is its excuse, too."""
        return self.path.parent if self.mount_point else self.path

    def note_hold(self, *, done: bool) -> None:
        """Remember that the server is about to be kept from writing, or that it is."""
        self.held_file.write_text("done" if done else "begun", encoding="ascii")

    def held(self) -> bool | None:
        """Whether the server is kept from writing; None if it is not, False if it may be."""
        try:
            return self.held_file.read_text(encoding="ascii") == "done"
        except FileNotFoundError:
            return None

    def note_release(self) -> None:
        """The server goes on."""
        self.held_file.unlink(missing_ok=True)

    def alive(self) -> bool:
        """Whether the server runs, and its relay if it has one."""
        return self.locked() and (self.relay.record() is None or self.relay.locked())

    def locked(self) -> bool:
        """Whether the process that has the image runs."""
        try:
            return is_locked(self.lock)
        except FileNotFoundError:
            return False

    def note_process(self, pid: int) -> None:
        """Remember the server that was started."""
        self.pid_file.write_text(str(pid))

    @property
    def export_inside(self) -> Path:
        """Where the export is for the server: as the kernel names it in sysfs, that is without links on the way."""
        return self.export.parent.resolve() / self.export.name

    @property
    def _exporter(self) -> "TapFolder":
        """What mounts the export."""
        return self.relay if self.relay.record() else self

    def open_export(self, flags: int) -> int:
        """Open the server's export as the server sees it, by way of its root folder. Ours to close.

        Nothing on the way is followed: what stands in a jail is its server's, which a guest may have taken over. A
        server of an earlier version has the host's root, so it is found the same way.

        Raises:
            DiskError: ServerLost, or ServerFailed if there is no such file.
        """
        pid = self._exporter.process_id()
        try:
            root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return openat2(root, str(self.export_inside)[1:], flags, RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH)
            finally:
                os.close(root)
        except OSError as error:
            raise DiskError(
                Reason.SERVER_FAILED, f"the export of the server (pid {pid}) can't be opened: {error.strerror}"
            ) from error

    def exports(self) -> bool:
        """Whether the server's export is mounted. Its device tells only later, as the kernel caches attributes."""
        try:
            seen = Path(f"/proc/{self._exporter.process_id()}/root{self.export_inside}")
            return seen.lstat().st_dev != seen.parent.stat().st_dev
        except DiskError:
            return False
        except OSError as error:
            # The mount of a server that has ended says these. Any other comes from a server that is there: ENOMEDIUM
            # from QEMU once it found its image corrupt, for example.
            return error.errno not in {errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT}

    def process_id(self) -> int:
        """The server's process id. Ask only while it is `alive`, as its own file would otherwise name another.

        Raises:
            DiskError: ServerLost if it ended meanwhile.
        """
        if pid := self.noted_process_id():
            return pid
        for holder in holders_of_path(str(self.lock)):  # it was being started when its agent was killed
            return holder.pid
        raise DiskError(Reason.SERVER_LOST, f"the server of {self.path} has just ended")

    def noted_process_id(self) -> int | None:
        """As the server's file has it."""
        try:
            return int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def unit(self) -> str | None:
        """The systemd service that the server runs in; None if it runs in none, or not at all."""
        try:
            groups = Path(f"/proc/{self.process_id()}/cgroup").read_text(encoding="utf-8").splitlines()
        except (OSError, DiskError):
            return None
        # One line, or one for each hierarchy, of which systemd's own is one (cgroups(7)).
        names = (group.rpartition("/")[2] for group in groups)
        return next((name for name in names if name.endswith(".service")), None)

    def process_ids(self) -> list[int]:
        """Those of the server and of its relay, as far as they run."""
        parts = [part for part in (self, self.relay) if part.locked()]
        return [part.process_id() for part in parts]

    def last_log_lines(self, count: int = 5) -> str:
        """The end of the log on one line, for a message; at most 4 KiB are read."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                lines = file.read().decode("utf-8", "replace").splitlines()[-count:]
        except FileNotFoundError:
            return ""
        return " | ".join(line.strip() for line in lines if line.strip())

    def remove(self) -> None:
        """Clear away what a server that is gone has left: its mount first, then the folder. Idempotent."""
        unmount_lazily(self.export)
        self.socket.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path)
