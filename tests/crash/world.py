"""A host whose agent is killed in front of any effect, and the search for what is not as it should be afterwards."""

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import Any

from agent.trust.private_key import PrivateKey
from agent.trust.statement import TrustStatement, encode_chain
from reconcilers.blktap.nbd.handshake import connect
from reconcilers.image_lock import lock_image
from reconcilers.loop import control, minors
from reconcilers.loop.note import DeviceNotes
from reconcilers.spec import DiskKey
from reconcilers.tag import disk_id
from tests.broker import Broker
from tests.crash.nursery import Agent, Nursery
from tests.crash.tracer import READY
from tests.trust.signing import folder as trusting
from tests.workbench import FLEET, PATIENCE, Bench, domain

GUEST = "vm1"
KEY = PrivateKey.new()
"""Signs statements, and is what the host trusts; documents are not signed."""

SOCKETS = "[blktap]\nservers = ['storage-daemon']\ndevices = ['nbd-socket']\n"
HOST_DEVICE = "/dev/host"
CONTENT_BYTES = 1 << 16
MARK_AT = 1 << 17


@dataclass(frozen=True, slots=True)
class Point:
    """In front of the effect of that name that comes as that number."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} #{self.number}" if self.number > 1 else self.name


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that is wanted; an empty image is an empty drive, and an empty format means loop or block.

    `driver` is more XML for the driver's element, `more` for the disk's.
    """

    target: str
    image: str
    format: str = ""
    read_only: bool = False
    device: str = "disk"
    driver: str = ""
    more: str = ""

    @property
    def key(self) -> DiskKey:
        """Its name."""
        return DiskKey(GUEST, self.target)

    @property
    def is_block(self) -> bool:
        """Whether a device of the host is passed through."""
        return self.image == HOST_DEVICE


class CrashBench(Bench):
    """A bench with images whose content is known, and an agent that can be killed at a point.

    With `sockets`, all taps are.
    """

    def __init__(self, folder: Path, broker: Broker, nursery: Nursery, *, sockets: bool = False) -> None:
        keys = trusting(folder / "trust", KEY)
        super().__init__(folder, broker, f'[trust]\nkeys = "{keys}"\n{SOCKETS if sockets else ""}')
        self._sockets = sockets
        self._nursery = nursery
        self._statements = 0
        self._held: Agent | None = None
        self.lines: Path | None = None
        self.holder: FileIO | socket.socket | None = None
        self.sha256 = ""
        self._generation = 0
        self._log_before = 0
        self._content: dict[str, dict[int, bytes]] = {}
        for byte, name in enumerate(("a.img", "b.img", "c.iso", "d.iso", "host.img"), 1):
            self.image(name)
            self._fill(name, "raw", byte)
        self.formatted("q.qcow2", "qcow2")
        self._fill("q.qcow2", "qcow2", 16)
        command = ["losetup", "--show", "-f", str(self.images / "host.img")]
        self.host_device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def _fill(self, name: str, fmt: str, byte: int) -> None:
        self._content[name] = {0: bytes([byte]) * CONTENT_BYTES}
        write = ["qemu-io", "-f", fmt, "-c", f"write -P {byte} 0 {CONTENT_BYTES}", str(self.images / name)]
        subprocess.run(write, check=True, capture_output=True)

    def close(self) -> None:
        self.let_go()
        super().close()
        subprocess.run(["losetup", "-d", self.host_device], check=True)

    def hand_over(self) -> None:
        """Publish the next trust statement; the keys stay the same."""
        self._statements += 1
        expires = datetime.now(UTC) + timedelta(days=1)
        keys = (KEY.public.pem,)
        statement = TrustStatement(
            fleet=FLEET, version=self._statements, threshold=1, keys=keys, expires=expires
        ).envelope()
        self.publish(f"tapster/v1/{FLEET}/trust", encode_chain([statement.signed_by(KEY)]))

    def obeys_newest(self) -> bool:
        """Whether the host says that it follows the trust statement published last."""
        said = [payload for topic, payload in self.messages if topic == f"{self.topics}/status/host"]
        return bool(said) and f"by trust statement {self._statements}:".encode() in said[-1]

    # The agent.

    def hold(self) -> None:
        """Make an agent that waits for `go`."""
        self.statuses.clear()
        self._log_before = self.log.stat().st_size if self.log.exists() else 0
        self._agent = self._held = self._nursery.agent(self.config, self.log, lines=self.lines)

    def go(self) -> None:
        """Let the agent begin that was made last."""
        assert self._held is not None
        self._held.go()

    def start(self) -> None:
        self.hold()
        self.go()

    def wait_synced(self) -> None:
        """As that of any bench, without reading what all agents before have said."""

        def synced() -> bool:
            with self.log.open("rb") as log:
                log.seek(self._log_before)
                return b"everything retained has arrived" in log.read()

        self.until(synced)

    @contextmanager
    def traced(self, point: Point | None = None) -> Iterator[list[str]]:
        """Trace the agent inside the block, and kill it at the point. The list of effects is filled at the end."""
        assert self._held is not None
        words = [str(self._held.pid), str(self.folder)] + ([point.name, str(point.number)] if point else [])
        output = self.folder / "effects"
        with output.open("wb") as file:
            command = [sys.executable, "-m", "tests.crash.tracer", *words]
            tracer = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=file)
        effects: list[str] = []
        try:
            self.until(lambda: READY in output.read_text().splitlines())
            yield effects
        finally:
            tracer.terminate()
            tracer.wait()
            effects += [line for line in output.read_text().splitlines() if line != READY]

    # What is wanted, and what others do.

    def want(self, *disks: Disk) -> None:
        """Publish a definition."""
        self.push_document(domain(GUEST, *(self._xml(disk) for disk in disks)))

    def want_nothing(self) -> None:
        """Publish that the guest is absent."""
        self.push_document(f'{{"guest": "{GUEST}", "state": "absent"}}')

    def push_document(self, document: str, **properties: str) -> None:
        """Publish a document that shall come into force."""
        self.sha256 = hashlib.sha256(document.encode()).hexdigest()
        self.push(GUEST, document, **properties)

    def next_generation(self) -> str:
        """A higher generation than any before."""
        self._generation += 1
        return str(self._generation)

    def _xml(self, disk: Disk) -> str:
        driver = f"name='tap2' type='{disk.format}'" if disk.format else "name='file'"
        source = f"<driver {driver} {disk.driver}/><source file='{self.images / disk.image}'/>" if disk.image else ""
        if disk.is_block:
            source = f"<driver name='phy'/><source dev='{self.host_device}'/>"
        kind = "block" if disk.is_block else "file"
        more = disk.more + ("<readonly/>" if disk.read_only else "")
        return f"<disk device='{disk.device}' type='{kind}'>{source}<target dev='{disk.target}'/>{more}</disk>"

    def mark(self, disks: Sequence[Disk]) -> None:
        """Write something new to each writable disk, and have it durable."""
        for disk in disks:
            if disk.image in self._content and not disk.read_only:
                data = os.urandom(1) * 4096
                if self._sockets:
                    write = [f"write -P {data[0]} {MARK_AT} 4096", "flush"]
                    subprocess.run(_client(self.stable(GUEST, disk.target), *write), check=True, capture_output=True)
                else:
                    with self.stable(GUEST, disk.target).open("r+b", buffering=0) as device:
                        os.pwrite(device.fileno(), data, MARK_AT)
                        os.fsync(device.fileno())
                self._content[disk.image][MARK_AT] = data

    def hold_open(self, target: str) -> None:
        """Use a disk, until `let_go`."""
        path = self.stable(GUEST, target)
        self.holder = _connection(path) if self._sockets else path.open("rb", buffering=0)

    def let_go(self) -> None:
        """Use no disk."""
        if self.holder:
            self.holder.close()
            self.holder = None

    # What is.

    def wait_settled(self, disks: Sequence[Disk], phase: str) -> list[str]:
        """Wait until all is as wanted; returns what is not when patience ends."""
        self.becomes(lambda: self.is_settled(disks, phase))
        return [*self._said_otherwise(disks, phase), *self._otherwise(disks)]

    def becomes(self, holds: Callable[[], bool]) -> bool:
        """Wait until something holds; returns whether it came true."""
        deadline = time.monotonic() + PATIENCE
        while not (held := holds()) and time.monotonic() < deadline:
            time.sleep(0.005)
        return held

    def is_settled(self, disks: Sequence[Disk], phase: str) -> bool:
        """Whether all is as wanted, on the host and in what the agent says."""
        return not self._said_otherwise(disks, phase) and not self._otherwise(disks)

    def _said_otherwise(self, disks: Sequence[Disk], phase: str) -> list[str]:
        status = self.statuses.get(GUEST, {})
        told = {disk["target"]: (disk["phase"], _device_or_socket(disk)) for disk in status.get("disks", [])}
        links, resting = self._links(), "Up" if phase == "Withdrawn" else phase
        found = [
            f"status of {disk.target}: {told.get(disk.target)}, its link: {links.get(disk.target)}"
            for disk in disks
            if told.get(disk.target) != (resting, links.get(disk.target))
        ]
        if (status.get("phase"), status.get("sha256")) != (phase, self.sha256):
            found.append(f"guest: {status.get('phase')} {status.get('sha256')}, wanted {phase} {self.sha256}")
        return found if self.running else [*found, "the agent has ended"]

    def _otherwise(self, disks: Sequence[Disk]) -> list[str]:
        wanted, actual = self._wanted([disk for disk in disks if disk.image]), self._actual()
        return [f"{name}: {actual[name]}, wanted {wanted[name]}" for name in actual if actual[name] != wanted[name]]

    def _wanted(self, disks: Sequence[Disk]) -> dict[str, object]:
        taps = [disk_id(disk.key) for disk in disks if disk.format]
        backing = {disk: self._backing(disk) for disk in disks}
        on_loop = [disk for disk in disks if not disk.is_block and not self._is_socket(disk)]
        return {
            "loop devices": Counter((backing[d], str(d.key), _wanted_state(d)) for d in on_loop),
            "stable paths": {disk.target: backing[disk] for disk in disks},
            "servers": len(taps),
            "mounts": 0 if self._sockets else len(taps),
            "sockets": sorted(taps) if self._sockets else [],
            "tap folders": sorted(taps),
            "notes": sorted(disk_id(disk.key) for disk in on_loop),
            "claims": sorted(f"{disk_id(disk.key)}.json" for disk in disks if disk.is_block),
            "drafts": [],
        }

    def _is_socket(self, disk: Disk) -> bool:
        return self._sockets and bool(disk.format)

    def _backing(self, disk: Disk) -> str:
        if self._is_socket(disk):
            return str(self.runtime / "sockets" / disk_id(disk.key))
        if disk.is_block:
            return self.host_device
        return str(self.runtime / "taps" / disk_id(disk.key) / "export" if disk.format else self.images / disk.image)

    def _actual(self) -> dict[str, object]:
        bound = dict(self._bound())
        files = {f"/dev/loop{minor}": backing for minor, (backing, *_) in bound.items()}
        return {
            "loop devices": Counter(bound.values()),
            "stable paths": {name: files.get(device, device) for name, device in self._links().items()},
            "servers": len(self.servers()),
            "mounts": len(self.mounts()),
            "sockets": sorted(path.name for path in self.runtime.glob("sockets/*")),
            "tap folders": sorted(path.name for path in self.runtime.glob("taps/*")),
            "notes": sorted(disk for disk, written in DeviceNotes(self.runtime / "loops").disks().items() if written),
            "claims": sorted(path.name for path in self.runtime.glob("claims/*")),
            "drafts": [str(path) for path in self._leftovers()],
        }

    def _bound(self) -> Iterator[tuple[int, tuple[str, str, frozenset[str]]]]:
        """Loop devices over anything of this bench's, whoever they say they belong to."""
        for minor in minors.bound():
            with suppress(OSError):
                backing = Path(f"/sys/block/loop{minor}/loop/backing_file").read_text().strip()
                if backing.startswith(str(self.folder)) and f"/dev/loop{minor}" != self.host_device:
                    yield minor, (backing, *_owner_and_state(minor))

    def _leftovers(self) -> Iterator[Path]:
        """Drafts, and folders of stable paths without any."""
        for folder, _, names in os.walk(self.runtime / "disks"):
            if folder != str(self.runtime / "disks") and not names:
                yield Path(folder)
            yield from (Path(folder, name) for name in names if name.startswith("."))
        for folder in ("claims", "taps"):
            for parent, _, names in os.walk(self.runtime / folder):
                yield from (Path(parent, name) for name in names if name.endswith(".new"))

    def _links(self) -> dict[str, str]:
        links: dict[str, str] = {}
        for _, _, names in os.walk(self.runtime / "disks" / GUEST):  # unlike glob, it minds no folder that goes
            for name in names:
                with suppress(FileNotFoundError):
                    links[name] = str(self.stable(GUEST, name).readlink())
        return {name: device for name, device in links.items() if name[0] != "."}

    def damage(self, disks: Sequence[Disk]) -> list[str]:
        """What is wrong with images and their locks, once there are no differences."""
        wanted, found = {disk.image: disk for disk in disks}, []
        for name, content in self._content.items():
            image, disk = self.images / name, wanted.get(name)
            if name != "host.img" and _is_locked(image) != bool(disk):
                found.append(f"{name} is {'not ' if disk else ''}locked")
            path = self.stable(GUEST, disk.target) if disk else image
            if self._sockets and self.holder:
                continue  # a socket has one client at a time
            found += [f"{name} has other bytes at {at}" for at, data in content.items() if not _holds(path, at, data)]
        return found


def _wanted_state(disk: Disk) -> frozenset[str]:
    words = {"read-only": disk.read_only, "no discard": "discard='ignore'" in disk.driver}
    return frozenset(word for word, holds in words.items() if holds)


def _owner_and_state(minor: int) -> tuple[str, frozenset[str]]:
    device = control.describe(minor)
    if device is None or device.tag is None:
        return "nobody", frozenset()
    file = Path(f"/sys/block/loop{minor}/loop/backing_file").read_text().strip()
    words = {
        "goes when it is closed": device.autoclear,
        "of another size than its image": file.endswith(".img") and Path(file).stat().st_size != device.size_bytes,
        "read-only": device.read_only,
        "no discard": control.discard_stopped(device),
    }
    return device.tag.label, frozenset(word for word, holds in words.items() if holds)


def _is_locked(image: Path) -> bool:
    fd = os.open(image, os.O_RDWR)
    try:
        return not lock_image(fd, read_only=False, shareable=False)
    finally:
        os.close(fd)


def _device_or_socket(disk: Mapping[str, Any]) -> str | None:
    export = ((disk["effective"] or {}).get("tap") or {}).get("export", "")
    return disk["device_path"] or (export.partition("?socket=")[2] if disk["stable_path"] else None)


def _client(socket: Path, *commands: str) -> list[str]:
    options = f"driver=nbd,server.type=unix,server.path={socket},export=disk"
    return ["qemu-io", "--image-opts", options, *(word for command in commands for word in ("-c", command))]


def _connection(path: Path) -> socket.socket:
    client, _ = connect(path, "disk", within=PATIENCE)
    return client


def _holds(path: Path, at: int, data: bytes) -> bool:
    if path.is_socket():
        read = ["-r", "-c", f"read -P {data[0]} {at} {len(data)}"]
        words = subprocess.run([*_client(path), *read], capture_output=True, text=True, check=False)
        return words.returncode == 0 and "failed" not in words.stdout
    if path.suffix != ".qcow2":
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), len(data), at) == data
    dump = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, dump], check=True)
    return _holds(dump, at, data)
