"""The decision: from what should be and what is, to one step. Pure, so that a table of cases can prove it.

`tapster plan` and the controller ask the same function.
"""

from dataclasses import dataclass, replace

from reconcilers.actual import SECTOR, Actual, Attached, Fault, Hold, Source, SourceKind
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.honour import possible
from reconcilers.reason import Reason
from reconcilers.spec import Backend, Device, DiskSpec, Format, Layer, StartupPolicy


@dataclass(frozen=True, slots=True)
class Nothing:
    """It is as it should be; the reason says in what way."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Keep:
    """What is there stays as it is, although something is wrong: touching it could do harm."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing is there and nothing will be until the inputs change."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Unlink:
    """The stable path names a device that is not this disk's, maybe another guest's by now: take it away first."""

    device_path: str


@dataclass(frozen=True, slots=True)
class Attach:
    """Bring the disk up. `spec` carries the effective backend and format."""

    spec: DiskSpec


@dataclass(frozen=True, slots=True)
class Adopt:
    """All is there but the stable path, a tap's device or the right claim: finish what was begun."""

    spec: DiskSpec
    attached: Attached


@dataclass(frozen=True, slots=True)
class Grow:
    """The image has grown: let what serves it and the device follow, online. Of so many bytes consists the disk now."""

    attached: Attached
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Enlarge:
    """Somebody asks for a larger disk: make its image so, online. It is answered whatever comes of it."""

    spec: DiskSpec
    attached: Attached
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Tune:
    """Change how the disk's bytes are moved, online."""

    spec: DiskSpec
    attached: Attached


@dataclass(frozen=True, slots=True)
class Quiesce:
    """Somebody wants to copy the image: flush everything, and keep the server from writing until further notice."""

    attached: Attached


@dataclass(frozen=True, slots=True)
class Resume:
    """Let a disk go on that was held still."""

    attached: Attached


@dataclass(frozen=True, slots=True)
class Revive:
    """Its server is gone, or sees less of its image than there is: put another one behind the same device.

    Requests wait meanwhile.
    """

    spec: DiskSpec
    attached: Attached


@dataclass(frozen=True, slots=True)
class Replace:
    """Take down what is there, if nobody uses it, and bring up what should be."""

    spec: DiskSpec
    attached: Attached
    why: str


@dataclass(frozen=True, slots=True)
class Detach:
    """Take down what is there, if nobody uses it."""

    attached: Attached


_Change = Adopt | Grow | Enlarge | Tune | Quiesce | Resume | Revive | Replace
Step = Nothing | Keep | Refuse | Unlink | Attach | _Change | Detach


def plan(desired: DiskSpec | None, actual: Actual) -> Step:
    """Decide one disk's next step.

    Args:
        desired: What should be; None if the disk should not be there.
        actual: What is, observed a moment ago.
    """
    if actual.attached and (step := _plan_waiting(actual.attached)):
        return step
    if actual.stray_link:
        return Unlink(actual.stray_link)
    if desired is None or desired.source is None:
        return _plan_without_source(desired, actual)
    match actual.source:
        case Source() as source:
            spec = effective(desired, source)
            step = _plan_with_source(spec, source, actual.attached)
            return _plan_asked(spec, actual) if isinstance(step, Nothing) else step
        case Fault(reason, message):
            return _plan_with_fault(desired, reason, message, actual.attached)
        case None:
            return Keep(Reason.INTERNAL_ERROR, f"the source of {desired.key} was not looked at")


def _plan_asked(desired: DiskSpec, actual: Actual) -> Step:
    """What somebody on the host asks for, once all is as the definition wants it."""
    if actual.attached and actual.asked_size:
        return Enlarge(desired, actual.attached, actual.asked_size)
    return Nothing(Reason.AS_DESIRED)


def _plan_waiting(attached: Attached) -> Step | None:
    """Of a disk whose server is not to be asked for anything now; None if it may be."""
    if attached.hold and attached.server_alive:
        return _plan_hold(attached.hold, attached)
    return None if attached.server_answers else Keep(Reason.SERVER_HUNG, _hung(attached))


def _plan_hold(hold: Hold, attached: Attached) -> Step:
    if is_held_too_long(attached):
        return Resume(attached)
    if not hold.held:
        return Quiesce(attached)
    message = f"it is held still, reads and writes wait; it goes on at {hold.until}, or sooner by tapster resume"
    return Keep(Reason.QUIESCED, message)


def is_held_too_long(attached: Attached) -> bool:
    """Whether a disk is to go on that was held still. That is right whatever else is wrong: its guest is frozen."""
    return attached.hold is not None and attached.hold.until is None and attached.server_alive


def failing(attached: Attached) -> Reason | None:
    """Why reads and writes of a disk that is there fail or wait; None if they do not."""
    if gone := _gone(attached):
        return gone
    if not attached.server_answers:
        return Reason.SERVER_HUNG
    return Reason.IMAGE_DAMAGED if attached.damage else None


def _gone(attached: Attached) -> Reason | None:
    if attached.server_alive:
        return None
    match attached.backend:
        case Backend.LOOP:
            return Reason.STORAGE_LOST
        case Backend.BLKTAP:
            return Reason.SERVER_LOST
        case Backend.BLOCK:
            return Reason.DEVICE_VANISHED


def effective(desired: DiskSpec, source: Source) -> DiskSpec:
    """The spec with the backend that its source can really have: `type` may lie, stat(2) does not.

    A regular file under `type='block'` or `phy` goes through loop, a device node under `type='file'` is passed
    through; blktap serves both. The status shows what was requested beside it.
    """
    match desired.backend, source.kind:
        case Backend.BLOCK, SourceKind.FILE:
            return replace(desired, backend=Backend.LOOP)
        case Backend.LOOP | Backend.BLOCK, SourceKind.BLOCK:
            part = desired.slice_offset or desired.slice_size
            return replace(desired, backend=Backend.LOOP if part else Backend.BLOCK)
        case _:
            return desired


def _hung(attached: Attached) -> str:
    return (
        f"{attached.server} behind {attached.device_path} runs, has requests to do and does not answer; look whether "
        "it is stopped (kill -CONT lets it go on) or the storage under its image hangs. It is not killed, since what "
        "it has not written yet would be lost"
    )


def _damaged(desired: DiskSpec, attached: Attached) -> str:
    return (
        f"{attached.server} found the image {desired.source} corrupt while it served it ({attached.damage}), and "
        "fails reads and writes since; take the disk down, look at the image with qemu-img check, and bring it up again"
    )


def _plan_without_source(desired: DiskSpec | None, actual: Actual) -> Step:
    if actual.attached is not None:
        return Detach(actual.attached)
    return Nothing(Reason.TAKEN_DOWN if desired is None else Reason.NO_MEDIUM)


def _plan_with_fault(desired: DiskSpec, reason: Reason, message: str, attached: Attached | None) -> Step:
    if attached is not None and (gone := _gone(attached)):
        return Keep(gone, f"reads and writes fail, and it can't be brought up again: {message}")
    if attached is not None and not attached.serves:
        return Keep(reason, f"{message}; its server still has the file open, and its device was taken away")
    if attached is not None:
        return Keep(reason, f"{message}; the disk that is up goes on with the file it has open")
    if reason is Reason.IMAGE_MISSING and desired.startup_policy is StartupPolicy.OPTIONAL:
        return Nothing(Reason.OPTIONAL_MISSING)
    return Refuse(reason, message)


def _plan_with_source(desired: DiskSpec, source: Source, attached: Attached | None) -> Step:
    if desired.device is Device.LUN and desired.backend is not Backend.BLOCK:
        message = f"device='lun' needs a whole block device, and {desired.source} is none; use device='disk'"
        return Refuse(Reason.NOT_A_LUN, message) if attached is None else Keep(Reason.NOT_A_LUN, message)
    if attached is None:
        return Attach(desired)
    return _plan_present(desired, source, attached)


def _plan_present(desired: DiskSpec, source: Source, attached: Attached) -> Step:
    to_be_tuned = _to_be_tuned(desired, attached)
    why = _difference(desired, source, attached)
    if why is None and to_be_tuned and not _tunable(desired, attached):
        why = "its caching, I/O, discard or limits are to be others"
    if not attached.server_alive:
        revive = attached.awaits_server and why is None and not to_be_tuned
        return Revive(desired, attached) if revive else Replace(desired, attached, "what serves it is gone")
    if why:
        return Replace(desired, attached, why)
    if not attached.linked or (attached.claim and attached.claim != (desired.read_only, desired.shareable)):
        return Adopt(desired, attached)
    if to_be_tuned:
        return Tune(desired, attached)
    return _plan_image(desired, source, attached)


_ASPECTS = ("backend", "format", "image", "backing chain", "read-only", "slice", "block size")


def _difference(desired: DiskSpec, source: Source, attached: Attached) -> str | None:
    """Why what is there can't stay, in words; None if it can, maybe tuned."""
    sector = attached.logical_block_size
    wanted: tuple[object, ...] = (desired.backend, desired.format, source.identity, desired.chain)
    present: tuple[object, ...] = (attached.backend, attached.format, attached.identity, attached.chain)
    if desired.backend is not Backend.BLOCK:
        wanted += (desired.read_only, (desired.slice_offset, desired.slice_size), desired.logical_block_size or sector)
        present += (attached.read_only, (attached.slice_offset, attached.slice_size), sector)
    if wanted == present:
        return None
    aspects = zip(_ASPECTS, wanted, present, strict=False)
    name, should_be, there = next(each for each in aspects if each[1] != each[2])
    return f"its {name} is {_words(there)} and should be {_words(should_be)}"


def _to_be_tuned(desired: DiskSpec, attached: Attached) -> bool:
    """Whether the host is to be asked for something else; what it did not grant is not asked for twice."""
    asked, wanted, backend = attached.asked, desired.tuning, attached.backend
    return asked != wanted and possible(asked, backend) != possible(wanted, backend)


def _tunable(desired: DiskSpec, attached: Attached) -> bool:
    """Whether the change can be made online."""
    wanted, before = desired.tuning, attached.asked
    if attached.backend is Backend.LOOP:
        return before.discard or not wanted.discard
    takes_limits = attached.tap is not None and attached.tap.takes_limits
    return takes_limits and replace(wanted, limits=()) == replace(before, limits=())


def _words(value: object) -> str:
    match value:
        case True:
            return "on"
        case False:
            return "off"
        case tuple() if all(isinstance(layer, Layer) for layer in value):
            return ", ".join(layer.path for layer in value) or "none"
    return str(value)


def _plan_image(desired: DiskSpec, source: Source, attached: Attached) -> Step:
    if attached.damage:
        return Keep(Reason.IMAGE_DAMAGED, _damaged(desired, attached))
    # Only a raw image's file has the disk's size; the others keep it in their headers.
    raw_file = desired.format in {Format.RAW, Format.AIO} and source.kind is SourceKind.FILE
    if not raw_file or desired.slice_size is not None:
        return Nothing(Reason.AS_DESIRED)
    size = source.size_bytes - desired.slice_offset
    up = 0 if desired.backend is Backend.LOOP else SECTOR - 1  # a server fills the last sector up, the kernel leaves it
    sectors = (size + up) // SECTOR * SECTOR
    if sectors - attached.size_bytes >= attached.logical_block_size:
        return _plan_grown(desired, attached, size)
    if sectors < attached.size_bytes:
        message = (
            f"the image {desired.source} shrank to {size} bytes under a device of {attached.size_bytes}; reads beyond "
            "its end fail. Grow it back with truncate -s, or take the disk down and up to accept the size"
        )
        return Keep(Reason.IMAGE_SHRUNK, message)
    return Nothing(Reason.AS_DESIRED)


def _plan_grown(desired: DiskSpec, attached: Attached, size: int) -> Step:
    """A FUSE export grows by a kind of write, and an NBD export with its server alone, as all of a tapdisk does."""
    match attached.tap and (attached.tap.server, attached.tap.device):
        case ServerKind.STORAGE_DAEMON, DeviceKind.NBD:
            return Revive(desired, attached)
        case ServerKind.STORAGE_DAEMON, DeviceKind.FUSE_LOOP if not attached.read_only:
            return Grow(attached, size)
        case None:
            return Grow(attached, size)
    return Replace(desired, attached, "its image has grown, and what serves it notices that only when it starts")
