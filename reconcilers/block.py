"""The `block` backend: a block device that the host already has, verified, claimed and passed through.

Nothing is made, so the claim is a small file in the runtime folder: which disk has which device. It names the device
by number and by the kernel's sequence number, so that a device recycled under the same number is not taken for it.
"""

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from reconcilers import block_layer, record_file
from reconcilers.actual import SECTOR, Attached, Claim, FileId
from reconcilers.backend import Reconciler, checked_source
from reconcilers.blktap.tap import TapRecord
from reconcilers.block_users import User, loop_user, programs_on
from reconcilers.errors import DiskError
from reconcilers.holders import DeviceHolders
from reconcilers.loop.devices import LoopDevices, guest_disk_below
from reconcilers.reason import Reason
from reconcilers.source import OpenSource, Pin
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format
from reconcilers.stable_path import StablePaths
from reconcilers.tag import disk_id
from reconcilers.tuning import UNTUNED

SERVER = "host device"
SCSI_CDROM_MAJOR = 11  # linux/major.h


class BlockClaim(BaseModel):
    """One disk's hold on a host's block device."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    guest: str
    target: str
    path: str
    rdev: int
    diskseq: int | None
    read_only: bool
    shareable: bool

    @property
    def key(self) -> DiskKey:
        """The disk that has the device."""
        return DiskKey(self.guest, self.target)


class BlockReconciler:
    """Host block devices, passed through."""

    backend = Backend.BLOCK

    def __init__(
        self, claims: Path, paths: StablePaths, *, loops: LoopDevices, taps: Callable[[], Iterable[TapRecord]]
    ) -> None:
        """Args: the folder of claims, the stable paths, and what else may have a block device."""
        self._claims = claims
        self._prefix = str(claims)
        self._paths = paths
        self._loops = loops
        self._taps = taps

    def refuse_taken(self, pin: Pin, spec: DiskSpec) -> None:
        """Refuse a block device that another disk or somebody else on this host has, by whatever name and backend.

        Raises:
            DiskError: SourceInUse.
        """
        path, rdev = pin.path, pin.source.identity.device
        if label := guest_disk_below(rdev):
            raise _in_use(path, f"guest disk {label}, whose own device it is or stands on")
        own, others = self._users(rdev, spec.key)
        _refuse_others(path, spec, others)
        _nobody_has_it(f"/proc/self/fd/{pin.fd}", _node(rdev))
        # Its own server may be who has it, and is asked when the disk is taken down.
        programs = None if own else programs_on(_node(rdev), spec, known=bool(others))
        if programs:
            raise _used_by_programs(_node(rdev), programs, Reason.SOURCE_IN_USE)

    def _users(self, rdev: int, key: DiskKey) -> tuple[list[User], list[User]]:
        """Who has the device, or one that it is a part of, stands on or carries: the disk itself, and others."""
        tower = block_layer.tower(rdev)
        claims = [claim for claim in self.survey() if claim.rdev in tower and _is_present(claim)]
        taps = [tap for tap in self._taps() if tap.on_block_device and tap.device in tower]
        users = [
            *(User(disk_id(one.key), _words(one.key, one.path), one.read_only, one.shareable) for one in claims),
            *(User(disk_id(one.key), _words(one.key, one.source), one.read_only, shareable=False) for one in taps),
            *(loop_user(disk, device, rdev) for disk, device in self._loops.over(tower)),
        ]
        own = [user for user in users if user.disk == disk_id(key)]
        return own, [user for user in users if user not in own]

    def survey(self) -> list[BlockClaim]:
        """Every claim there is."""
        return [claim for path in self._claims.glob("*.json") if (claim := record_file.read(str(path), BlockClaim))]

    def sweep(self) -> None:
        """Clear away claims that were being written when their agent was killed."""
        for draft in self._claims.glob(f"*{record_file.DRAFT}"):
            with suppress(OSError):  # it is in nobody's way
                draft.unlink()

    def observe(self, key: DiskKey) -> Attached | None:
        """See `Reconciler`."""
        claim = self._claim(key)
        if claim is None:
            return None
        return Attached(
            backend=Backend.BLOCK,
            format=Format.RAW,
            identity=FileId(claim.rdev, 0),
            device_path=claim.path,
            diskseq=claim.diskseq,
            size_bytes=(block_layer.number(claim.rdev, "size") or 0) * SECTOR,
            logical_block_size=block_layer.number(claim.rdev, "queue/logical_block_size") or 512,
            read_only=bool(block_layer.number(claim.rdev, "ro")),
            tuning=UNTUNED,
            asked=UNTUNED,
            slice_offset=0,
            slice_size=None,
            server=SERVER,
            server_alive=_is_present(claim),
            linked=self._paths.read(key) == claim.path,
            claim=Claim(claim.read_only, claim.shareable),
        )

    async def attach(self, spec: DiskSpec, pin: Pin, *, replacing: Reconciler | None = None) -> str | None:
        """See `Reconciler`."""
        async with checked_source(spec, pin) as checked:
            if replacing:
                await replacing.detach(spec.key)
            await asyncio.to_thread(self._take, spec, checked.image)
            return checked.verdict.warning

    async def adopt(self, spec: DiskSpec) -> None:
        """See `Reconciler`."""
        await asyncio.to_thread(self._finish, spec)

    async def detach(self, key: DiskKey) -> None:
        """See `Reconciler`. The device itself is not ours to take down; only the claim and the link are."""
        await asyncio.to_thread(self._let_go, key)

    async def grow(self, key: DiskKey, size_bytes: int) -> None:
        """See `Reconciler`. Never planned: the device's owner grows it."""
        del size_bytes
        raise AssertionError(f"{key} is not a plain file")

    async def tune(self, spec: DiskSpec) -> None:
        """See `Reconciler`. Never planned: the device is passed through as it is."""
        raise AssertionError(f"{spec.key} has nothing to tune")

    def _take(self, spec: DiskSpec, image: OpenSource) -> None:
        rdev = image.source.identity.device
        claim = BlockClaim(
            guest=spec.key.guest,
            target=spec.key.target,
            path=_node(rdev),
            rdev=rdev,
            diskseq=block_layer.number(rdev, "diskseq"),
            read_only=spec.read_only,
            shareable=spec.shareable,
        )
        self._claims.mkdir(parents=True, exist_ok=True)
        record_file.write(self._claim_path(spec.key), claim)
        self._paths.point(spec.key, claim.path)

    def _finish(self, spec: DiskSpec) -> None:
        claim = self._claim(spec.key)
        if claim is None:
            return
        self._paths.point(spec.key, claim.path)
        changed = claim.model_copy(update={"read_only": spec.read_only, "shareable": spec.shareable})
        if changed != claim:
            _, others = self._users(claim.rdev, spec.key)
            _refuse_others(claim.path, spec, others)
            record_file.write(self._claim_path(spec.key), changed)

    def _let_go(self, key: DiskKey) -> None:
        claim = self._claim(key)
        if claim is not None and _is_present(claim):
            _nobody_has_it(claim.path, claim.path, reason=Reason.DEVICE_IN_USE)
            programs = programs_on(claim.path)
            if programs and not self._is_shared(claim):  # else nobody can tell whose guest runs
                raise _used_by_programs(claim.path, programs, Reason.DEVICE_IN_USE)
        self._paths.remove(key)
        Path(self._claim_path(key)).unlink(missing_ok=True)

    def _is_shared(self, claim: BlockClaim) -> bool:
        _, others = self._users(claim.rdev, claim.key)
        return any(user.disk for user in others)

    def _claim(self, key: DiskKey) -> BlockClaim | None:
        return record_file.read(self._claim_path(key), BlockClaim)

    def _claim_path(self, key: DiskKey) -> str:
        return f"{self._prefix}/{disk_id(key)}.json"


def _is_present(claim: BlockClaim) -> bool:
    """Whether the device is still the one that was claimed, and not another one under its number."""
    if os.major(claim.rdev) == SCSI_CDROM_MAJOR:  # each disc gives the drive another number (block/disk-events.c)
        return block_layer.number(claim.rdev, "size") is not None
    return block_layer.number(claim.rdev, "diskseq") == claim.diskseq


def _words(key: DiskKey, device: str) -> str:
    """Names the device too, as it may be another one of the same tower."""
    return f"guest disk {key}, which has {device}"


def _refuse_others(path: str, spec: DiskSpec, others: Iterable[User]) -> None:
    for user in others:
        if not user.goes_with(spec):
            raise _in_use(path, user.who)


def _nobody_has_it(path: str, node: str, *, reason: Reason = Reason.SOURCE_IN_USE) -> None:
    """An exclusive open fails while a mount, RAID, LVM or another exclusive opener has the device (open(2), O_EXCL)."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except FileNotFoundError:
        return
    except OSError as error:
        holders = DeviceHolders.of(node)
        raise _in_use(node, f"something on this host: {holders}", reason=reason, holders=holders) from error


def _used_by_programs(node: str, programs: DeviceHolders, reason: Reason) -> DiskError:
    who = str(programs) if programs.processes else "a QEMU that has locked it and can't be seen from here"
    return _in_use(node, f"something on this host: {who}", reason=reason, holders=programs)


def _in_use(
    path: str, who: str, *, reason: Reason = Reason.SOURCE_IN_USE, holders: DeviceHolders | None = None
) -> DiskError:
    message = f"device {path} is in use by {who}; two users would corrupt it. Let the holder go first"
    return DiskError(reason, message, holders)


def _node(rdev: int) -> str:
    node = block_layer.node(rdev)
    if node is None:
        raise DiskError(Reason.IMAGE_MISSING, f"block device {os.major(rdev)}:{os.minor(rdev)} has just gone")
    return node
