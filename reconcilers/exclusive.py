"""Nobody gets an image that somebody else has: the check that every backend makes before it attaches.

Three nets, from exact to wide: QEMU's image locks, which loop devices and taps of ours hold too; loop devices that
somebody else made, which hold no lock; processes that have the file open for writing without asking anybody.
"""

import select
from pathlib import Path

from reconcilers.actual import FileId, SourceKind
from reconcilers.blktap.tap import TapFolder
from reconcilers.errors import DiskError
from reconcilers.holders import GLANCE_SECONDS, holders_of_file
from reconcilers.image_lock import lock_image, sole_opener
from reconcilers.loop.control import LoopDevice
from reconcilers.loop.devices import devices_over
from reconcilers.loop.scan import bound_devices
from reconcilers.mounts import is_mount_point
from reconcilers.reason import Reason
from reconcilers.source import OpenSource
from reconcilers.spec import WRITABLE_BY_MANY, DiskSpec


def claim(image: OpenSource, spec: DiskSpec) -> None:
    """Lock the open image for `spec`, or say who has it.

    The lock is on the image's open file: it lives as long as whoever that file is handed to.

    Raises:
        DiskError: SourceInUse, naming the holder; UnsupportedFeature if there could be a second writer to a format
            that bears only one.
    """
    if spec.shareable and not spec.read_only and spec.format not in WRITABLE_BY_MANY:
        raise DiskError(
            Reason.UNSUPPORTED_FEATURE,
            f"source {image.path} is a {spec.format} image, and two who write to one destroy it; say <readonly/>, take "
            "out <shareable/>, or convert it to raw (qemu-img convert)",
        )
    if who := _locked_out_by(image, spec):
        raise _in_use(image, who)
    if image.source.kind is SourceKind.FILE and not sole_opener(image.fd):
        _refuse_unlocked_users(image, spec)


def _locked_out_by(image: OpenSource, spec: DiskSpec) -> str | None:
    """Lock the image. Returns who keeps us from that.

    Who can't be found may just be going: a loop device tells of its end before the kernel lets go of its file, and
    with it of the locks (drivers/block/loop.c, `__loop_clr_fd`), and whoever hears of it may come in between.
    """
    for pause in GLANCE_SECONDS:
        if lock_image(image.fd, read_only=spec.read_only, shareable=spec.shareable):
            return None
        if who := _who(image.source.identity):
            return who
        select.select((), (), (), pause)
    free = lock_image(image.fd, read_only=spec.read_only, shareable=spec.shareable)
    return None if free else "a lock whose holder is not visible from here"


def _refuse_unlocked_users(image: OpenSource, spec: DiskSpec) -> None:
    identity = image.source.identity
    for device in bound_devices():
        harmless = spec.read_only and device.read_only
        if device.backing == identity and not (harmless or (spec.shareable and device.tag)):
            raise _in_use(image, _loop_words(device))
        if device.silent and not _is_export(Path(device.backing_path or "/")):
            raise _in_use(image, f"loop device {device.path}, maybe: it does not say now what it is on")
    if not spec.shareable and (writers := holders_of_file(identity, writers_only=True)):
        raise _in_use(image, ", ".join(map(str, writers)))


def _is_export(backing: Path) -> bool:
    """Whether a loop device's path is that of a tap's export, which is no image; also of another agent's tap."""
    return TapFolder.of_export(backing) is not None or is_mount_point(backing)


def _who(identity: FileId) -> str:
    words = [_loop_words(device) for device in devices_over(identity)]
    words += [str(holder) for holder in holders_of_file(identity)]
    return ", ".join(words)


def _loop_words(device: LoopDevice) -> str:
    if device.tag:
        return f"guest disk {device.tag.label} ({device.path})"
    return f"loop device {device.path}, which tapster did not make"


def _in_use(image: OpenSource, who: str) -> DiskError:
    return DiskError(
        Reason.SOURCE_IN_USE,
        f"source {image.path} is in use by {who}; attaching it twice would corrupt it. Let the holder go first, or "
        "say <shareable/> or <readonly/> in every definition that uses it",
    )
