"""The loop driver's ioctls, and nothing else: attach, describe, try to detach, grow, tune.

Numbers and layouts are those of include/uapi/linux/loop.h and fs.h. All calls block for well under a
millisecond unless the storage under the image hangs, so callers run them in a thread.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reconcilers import sysfs
from reconcilers.actual import SECTOR, FileId
from reconcilers.errors import DiskError
from reconcilers.loop.minors import LoopNumbers, node
from reconcilers.reason import Reason
from reconcilers.tag import Tag

_LOOP_CLR_FD = 0x4C01
_LOOP_SET_STATUS64 = 0x4C04
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_SET_CAPACITY = 0x4C07
_LOOP_SET_DIRECT_IO = 0x4C08
_LOOP_CONFIGURE = 0x4C0A
_BLKROSET = 0x125D
_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268
_BLKGETDISKSEQ = 0x80081280

# LO_FLAGS_* of loop.h. PARTSCAN is left out on purpose: a guest's partition table is the guest's.
_READ_ONLY = 1
_AUTOCLEAR = 4
_DIRECT_IO = 16

_INFO = struct.Struct("=5Q4I64s64s32s2Q")  # struct loop_info64
_CONFIG = struct.Struct("=2I5Q4I64s64s32s2Q8Q")  # struct loop_config: fd, block_size, info, reserved

# Another number may do: bound by somebody meanwhile (EBUSY), being bound (EAGAIN), being removed (ENXIO, ENODEV,
# ENOENT). Any other errno is about the image or the request, and final.
_TRY_ANOTHER = {errno.EBUSY, errno.EAGAIN, errno.ENXIO, errno.ENODEV, errno.ENOENT}
_ATTEMPTS = 64
# So many numbers lost in a row: others have taken many since they were looked at, and may do so while they are looked
# at again. So after as many once more only a number will do that nobody has seen.
_STALE_AFTER = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopDevice:
    """A bound loop device, as the kernel describes it. Sizes and offsets are bytes.

    `backing`, `tag`, the three flags and the slice are unknown (None, False, 0) when the file system under the backing
    file fails, as a FUSE mount does whose server died: LOOP_GET_STATUS64 asks it for the file's attributes and then
    says nothing at all. The path in sysfs is still told, and `error` says what failed.

    Attributes, where their names do not say it:
        autoclear: It goes when its last user closes it.
    """

    minor: int
    backing: FileId | None
    tag: Tag | None
    read_only: bool
    direct_io: bool
    autoclear: bool
    offset: int
    size_limit: int
    size_bytes: int
    logical_block_size: int
    diskseq: int | None
    backing_path: str | None = None
    error: int = 0

    @property
    def path(self) -> str:
        """The device node."""
        return node(self.minor)

    @property
    def silent(self) -> bool:
        """Whether it did not answer in time, so that its backing file may be any."""
        return self.error == errno.ETIMEDOUT

    @property
    def dead(self) -> bool:
        """Whether the file system under the backing file is gone for good: nothing but errors will ever come from it.

        A FUSE mount whose server has ended answers ENOTCONN, ECONNABORTED to what was under way; NFS answers ESTALE.
        """
        return self.error in {errno.ENOTCONN, errno.ECONNABORTED, errno.ESTALE}


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def attach(
    backing_fd: int,
    numbers: LoopNumbers,
    *,
    tag: Tag,
    read_only: bool,
    direct_io: bool,
    block_size: int,
    offset: int = 0,
    size_limit: int = 0,
) -> LoopDevice:
    """Bind a loop device to the file open at `backing_fd`; the kernel keeps that open file, locks included.

    Args:
        backing_fd: The image or export; may be closed afterwards.
        numbers: Where the device's number comes from.
        tag: Written into the device.
        read_only: The device refuses writes.
        direct_io: Ask for O_DIRECT on the backing file; the kernel may not grant it (see the result).
        block_size: Logical block size in bytes. Always given: by itself the kernel would take the backing file's
            direct I/O alignment, and a guest's sector size must not depend on the host's disk.
        offset: First byte of the file to serve.
        size_limit: Bytes to serve; 0 for all.

    Returns:
        The device, read back from the kernel and checked against what was asked.

    Raises:
        DiskError: NoLoopDevice or KernelError; nothing is left bound.
    """
    wanted = (_READ_ONLY if read_only else 0) | (_DIRECT_IO if direct_io else 0)
    config = _CONFIG.pack(
        *(backing_fd, block_size, 0, 0, 0, offset, size_limit, 0, 0, 0, wanted),
        *(bytes(tag), b"", b"", 0, 0, *[0] * 8),
    )
    for attempt in range(_ATTEMPTS):
        if attempt == _STALE_AFTER:
            numbers.learn()
        minor = numbers.take() if attempt < 2 * _STALE_AFTER else numbers.make()
        try:
            with _opened(node(minor), os.O_RDONLY if read_only else os.O_RDWR) as device_fd:
                fcntl.ioctl(device_fd, _LOOP_CONFIGURE, config)
                return _verified(device_fd, minor, backing_fd, tag, read_only=read_only)
        except OSError as error:
            if error.errno in _TRY_ANOTHER:
                continue
            raise DiskError(
                Reason.KERNEL_ERROR, f"binding {node(minor)} failed: {error.strerror} (errno {error.errno})"
            ) from error
    raise DiskError(
        Reason.NO_LOOP_DEVICE,
        f"{_ATTEMPTS} loop devices in a row were taken by others; it is tried again",
    )


def _verified(device_fd: int, minor: int, backing_fd: int, tag: Tag, *, read_only: bool) -> LoopDevice:
    # BLKROSET survives detach and attach, so a former user's read-only mark may still be on the number.
    if not read_only:
        fcntl.ioctl(device_fd, _BLKROSET, struct.pack("i", 0))
    device = _describe(device_fd, minor)
    as_asked = device is not None and (
        device.backing == FileId.of(os.fstat(backing_fd))
        and device.tag == tag
        and device.read_only == read_only
        and device.size_bytes >= SECTOR
    )
    if device is None or not as_asked:
        fcntl.ioctl(device_fd, _LOOP_CLR_FD)  # ours alone until the path is published
        raise DiskError(Reason.KERNEL_ERROR, f"{node(minor)} came up other than asked: {device}")
    return device


def describe(minor: int) -> LoopDevice | None:
    """What loop device `minor` is bound to; None if it is free, going or gone."""
    try:
        with _opened(node(minor), os.O_RDONLY) as device_fd:
            return _describe(device_fd, minor)
    except OSError as error:
        if error.errno in {errno.ENXIO, errno.ENOENT, errno.ENODEV}:
            return None
        raise DiskError(
            Reason.KERNEL_ERROR, f"looking at {node(minor)} failed: {error.strerror} (errno {error.errno})"
        ) from error


def _describe(fd: int, minor: int) -> LoopDevice | None:
    try:
        raw = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_INFO.size))
    except OSError as error:
        if error.errno == errno.ENXIO:  # not bound, or on its way to that
            return None
        return _describe_dead(fd, minor, error)
    device, inode, rdevice, offset, size_limit, _, _, _, flags, name, *_ = _INFO.unpack(raw)
    return LoopDevice(
        minor=minor,
        backing=FileId(rdevice, 0) if rdevice else FileId(device, inode),  # lo_device is that of the node, in devtmpfs
        tag=Tag.parse(name),
        read_only=bool(flags & _READ_ONLY),
        direct_io=bool(flags & _DIRECT_IO),
        autoclear=bool(flags & _AUTOCLEAR),
        offset=offset,
        size_limit=size_limit,
        size_bytes=_number(fd, _BLKGETSIZE64, "=Q"),
        logical_block_size=_number(fd, _BLKSSZGET, "=I"),
        diskseq=_diskseq(fd),
    )


def describe_outside(minor: int) -> LoopDevice | None:
    """As `describe`, without a question to the file system under the backing file, which does not answer."""
    try:
        with _opened(node(minor), os.O_RDONLY) as device_fd:
            return _describe_dead(device_fd, minor, TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
    except OSError:
        return None


def _describe_dead(fd: int, minor: int, error: OSError) -> LoopDevice | None:
    try:
        path = os.fsdecode(Path(f"/sys/block/loop{minor}/loop/backing_file").read_bytes()).rstrip("\n")
    except FileNotFoundError:
        return None
    return LoopDevice(
        minor=minor,
        backing=None,
        tag=None,
        read_only=False,
        direct_io=False,
        autoclear=False,
        offset=0,
        size_limit=0,
        size_bytes=_number(fd, _BLKGETSIZE64, "=Q"),
        logical_block_size=_number(fd, _BLKSSZGET, "=I"),
        diskseq=_diskseq(fd),
        backing_path=path,
        error=error.errno or errno.EIO,
    )


def _number(fd: int, request: int, layout: str) -> int:
    answer = fcntl.ioctl(fd, request, bytes(struct.calcsize(layout)))
    return int(struct.unpack(layout, answer)[0])


def _diskseq(fd: int) -> int | None:
    try:
        return _number(fd, _BLKGETDISKSEQ, "=Q")
    except OSError:  # ENOTTY: a kernel before 5.15
        return None


def try_detach(device: LoopDevice) -> bool:
    """Take a device down if nobody has it open.

    LOOP_CLR_FD always says 0. If others have the device open it only marks it AUTOCLEAR, that is, to be yanked when
    the last of them closes; then the mark is taken off again and the device is as it was (loop.c, `loop_clr_fd`). It
    stays on a device whose backing file system is dead: nothing but EIO comes from that, so it may go by itself.

    Returns:
        True if the device is going or already was somebody else's; False if it is in use.
    """
    try:
        with _opened(device.path, os.O_RDONLY) as opened:
            now = _describe(opened, device.minor)
            if now is None or now.diskseq != device.diskseq or (now.tag != device.tag and not now.error):
                return True
            fcntl.ioctl(opened, _LOOP_CLR_FD)
            return not _still_bound(opened)
    except OSError as error:
        if error.errno in {errno.ENXIO, errno.ENOENT, errno.ENODEV}:
            return True
        raise DiskError(
            Reason.KERNEL_ERROR, f"detaching {device.path} failed: {error.strerror} (errno {error.errno})"
        ) from error


def _still_bound(fd: int) -> bool:
    try:
        raw = bytearray(fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_INFO.size)))
    except OSError as error:
        return error.errno != errno.ENXIO
    fields = list(_INFO.unpack(raw))
    fields[8] &= ~_AUTOCLEAR
    fcntl.ioctl(fd, _LOOP_SET_STATUS64, _INFO.pack(*fields))
    return True


def grow(device: LoopDevice) -> None:
    """Let the device take on its backing file's present size; the caller has seen that it is larger."""
    with _opened(device.path, os.O_RDONLY) as opened:
        fcntl.ioctl(opened, _LOOP_SET_CAPACITY)


def set_direct_io(device: LoopDevice, on: bool) -> None:
    """Bypass the page cache or not, online. What the backing file can't do is left as it is: see `describe`."""
    with _opened(device.path, os.O_RDONLY) as opened, suppress(OSError):
        fcntl.ioctl(opened, _LOOP_SET_DIRECT_IO, int(on))


def discards(device: LoopDevice) -> bool:
    """Whether what is discarded on the device is punched out of its backing file."""
    return _queue(device, "discard_max_bytes") > 0


def discard_stopped(device: LoopDevice) -> bool:
    """Whether its backing file could, and the device does not. It then stays so for as long as the number exists."""
    return not discards(device) and _queue(device, "discard_max_hw_bytes") > 0


def stop_discard(device: LoopDevice) -> None:
    """Pass discards on no more, online.

    For good: the kernel keeps this with the number, also when another file is bound to it, and lets nobody undo it
    (block/blk-sysfs.c: without a granularity no other limit is valid). `retire` such a number after its use.
    """
    Path(f"/sys/block/loop{device.minor}/queue/discard_max_bytes").write_text("0", encoding="ascii")


def _queue(device: LoopDevice, name: str) -> int:
    return int(sysfs.read(f"/sys/block/loop{device.minor}/queue/{name}"))
