"""This instance's nbd devices, each over one server's unix socket."""

from pathlib import Path

from reconcilers.blktap.device import BlockNode
from reconcilers.blktap.kinds import ServerKind
from reconcilers.blktap.nbd import control
from reconcilers.blktap.nbd.control import NbdDevice, Netlink
from reconcilers.blktap.nbd.handshake import connect
from reconcilers.blktap.nbd.messages import Connection
from reconcilers.blktap.nodes import EXPORT
from reconcilers.blktap.tap import TapFolder, TapRecord
from reconcilers.errors import DiskError
from reconcilers.holders import keepers
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey, DiskSpec, Format
from reconcilers.tag import Tag, disk_id

DEFAULT_BLOCK_SIZE = 512

HANDSHAKE_SECONDS = 5.0

_NAMES = {ServerKind.TAPDISK: "", ServerKind.STORAGE_DAEMON: EXPORT}


def survives_its_server(record: TapRecord) -> bool:
    """Whether a new server knows all writes that the killed one had acknowledged, so that a guest needs not be told.

    A server for qcow2 keeps parts of the image's tables in its own memory until a flush: after SIGKILL, 1287 of 4096
    byte blocks out of 300 acknowledged writes were gone from an empty image (measured with QEMU 7.2.22), and none in
    any other format, nor where every write is flushed.
    """
    return record.read_only or record.format is not Format.QCOW2 or record.tuning.cache.through


class NbdDevices:
    """See `TapDevice`. The kernel shows the mark that each device was given."""

    def __init__(self, instance: str, *, grace: int) -> None:
        """Args: this agent's instance; for how many seconds requests wait for a server that has to be started anew."""
        self._instance = instance
        self._grace = grace
        self._netlink = Netlink()
        self._indices: dict[str, int] = {}
        self._surveyed = False

    def survey(self) -> dict[str, NbdDevice]:
        """Look at every nbd device of the host; those of this instance, by the id of their disk."""
        ours = {one.tag.disk: one for one in control.devices() if one.tag.instance == self._instance}
        self._indices |= {disk: one.index for disk, one in ours.items()}
        self._surveyed = True
        return ours

    def find(self, key: DiskKey) -> BlockNode | None:
        """See `TapDevice`."""
        device = self._device(key)
        return _node(device) if device else None

    def glimpse(self, key: DiskKey) -> BlockNode | None:
        """See `TapDevice`. The kernel knows all of it."""
        return self.find(key)

    def lost(self, index: int) -> str | None:
        """The id of the disk that was on device `index`, if that is gone."""
        if control.describe(index):
            return None
        return next((disk for disk, number in list(self._indices.items()) if number == index), None)

    def attach(self, spec: DiskSpec, tap: TapFolder) -> BlockNode:
        """See `TapDevice`. A device that waits for a server is given this one, and grows with what it serves."""
        record = tap.record()
        if record is None:
            raise AssertionError(f"the tap folder {tap.path} has no record")
        device = self._device(spec.key)
        client, export = connect(tap.nbd, _NAMES[record.server_kind], within=HANDSHAKE_SECONDS)
        with client:
            if device is None:
                device = self._connect(spec, record, client.fileno(), export.size_bytes, export.flags)
            else:
                self._reconnect(device, client.fileno(), export.size_bytes)
        tap.connected()
        return _node(device)

    def detach(self, key: DiskKey) -> None:
        """See `TapDevice`."""
        device = self._device(key)
        if device and (holders := keepers(device.path, lambda: control.try_disconnect(self._netlink, device))):
            raise DiskError(Reason.DEVICE_IN_USE, f"{device.path} is {holders}", holders)
        self._indices.pop(disk_id(key), None)

    def _connect(self, spec: DiskSpec, record: TapRecord, fd: int, size_bytes: int, flags: int) -> NbdDevice:
        tag = Tag.of(self._instance, spec.key)
        block_size = spec.logical_block_size or DEFAULT_BLOCK_SIZE
        connection = Connection(
            socket_fd=fd,
            size_bytes=size_bytes // block_size * block_size,
            block_size=block_size,
            flags=flags,
            backend=bytes(tag).decode(),
            grace=self._grace if survives_its_server(record) else 0,
        )
        try:
            index = control.connect(self._netlink, connection)
        except DiskError:
            self._surveyed = False  # it may be there nonetheless, if only the answer was lost
            raise
        self._indices[tag.disk] = index
        return NbdDevice(index, tag)

    def _reconnect(self, device: NbdDevice, fd: int, served: int) -> None:
        """Put another server behind a device; one that serves more of an image that has grown grows the device."""
        size, block_size, _ = control.facts(device)
        if served < size:
            message = f"the server of {device.path} has {served} bytes now, which is less than the device"
            raise DiskError(Reason.SERVER_FAILED, message)
        control.reconnect(self._netlink, device, fd)
        if (grown := served // block_size * block_size) > size:
            control.resize(self._netlink, device, grown)

    def _device(self, key: DiskKey) -> NbdDevice | None:
        if not self._surveyed:  # once is enough, since nobody else makes devices with our mark
            self.survey()
        index = self._indices.get(disk_id(key))
        device = control.describe(index) if index is not None else None
        is_its = device and (device.tag.instance, device.tag.disk) == (self._instance, disk_id(key))
        return device if is_its else None


def _node(device: NbdDevice) -> BlockNode:
    size, block, diskseq = control.facts(device)
    return BlockNode(device.path, diskseq, size, block)


def why_not() -> str | None:
    """What keeps this host from having nbd devices; None if nothing does."""
    if not Path("/sys/module/nbd").exists():
        return "the kernel has no nbd loaded (modprobe nbd max_part=0)"
    if control.scans_partitions():
        return "nbd reads guests' partition tables; load it with max_part=0 (options nbd max_part=0 in modprobe.d)"
    return None if control.is_available() else "the kernel's nbd does not answer by netlink"
