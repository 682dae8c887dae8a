"""The nbd driver, by netlink and sysfs: connect, find, reconnect, grow, try to disconnect.

A device made by netlink lives on its own: the kernel holds the socket, and no process of ours has to stay.
"""

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reconcilers.blktap.nbd import messages
from reconcilers.blktap.nbd.messages import Answer, Connection
from reconcilers.errors import DiskError
from reconcilers.handed_over import handed_over
from reconcilers.reason import Reason
from reconcilers.tag import Tag

ANSWER_SECONDS = 10.0
"""How long the kernel may take; it takes a millisecond, or as long as its writes of a closing device."""

NOTICE_SECONDS = 2.0
"""How long the kernel may take to notice that a socket's other end is closed; it takes a millisecond."""

SOCKET = "nbd"
"""What tapster-nbd.socket calls its descriptor."""

MAJOR = 43
"""Of every nbd device; the minor is its number, as `scans_partitions` is not allowed (linux/major.h)."""

_GENERIC = 16  # NETLINK_GENERIC
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class NbdDevice:
    """A device with a configuration, as sysfs shows it. It may wait for a server."""

    index: int
    tag: Tag

    @property
    def path(self) -> str:
        """The device node."""
        return f"/dev/nbd{self.index}"


class Netlink:
    """Asks the kernel one question after the other."""

    def __init__(self) -> None:
        self._sequence = 0

    def ask(self, message: Callable[[int, int], bytes]) -> Answer:
        """Send what `message` makes of the family's number and a sequence number; returns what came before the end.

        Raises:
            OSError: What the kernel answers; ENOENT if there is no nbd.
        """
        with _kernel() as kernel:
            family = self._exchange(kernel, messages.get_family).family
            if family is None:
                raise OSError(errno.ENOENT, "the kernel has no nbd")
            return self._exchange(kernel, lambda sequence: message(family, sequence))

    def _exchange(self, kernel: socket.socket, message: Callable[[int], bytes]) -> Answer:
        self._sequence += 1
        sequence, found = self._sequence, Answer(self._sequence, None, {})
        kernel.send(message(sequence))
        while True:
            for answer in messages.answers(kernel.recv(65536)):
                if answer.sequence != sequence:
                    continue
                if answer.errno:
                    raise OSError(answer.errno, os.strerror(answer.errno))
                if answer.errno == 0:
                    return found
                found = answer


@contextmanager
def _kernel() -> Iterator[socket.socket]:
    """Ours if we are in the host's network, to which alone nbd answers; else the one that systemd has opened there."""
    given = handed_over(SOCKET)
    if given is None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _GENERIC) as kernel:
            kernel.bind((0, 0))
            kernel.settimeout(ANSWER_SECONDS)
            yield kernel
        return
    with _one_at_a_time, socket.socket(fileno=os.dup(given)) as kernel:
        kernel.setblocking(False)
        with suppress(BlockingIOError):
            while True:  # what was answered too late to somebody before us, who may have counted as we do
                kernel.recv(65536)
        kernel.settimeout(ANSWER_SECONDS)
        yield kernel


def is_available() -> bool:
    """Whether the kernel has nbd loaded."""
    try:
        Netlink().ask(lambda _, sequence: messages.get_family(sequence))
    except OSError:
        return False
    return True


def scans_partitions() -> bool:
    """Whether the driver reads the partition tables of the disks that it makes devices of, which are guests' own."""
    try:
        return int(Path("/sys/module/nbd/parameters/max_part").read_text(encoding="ascii")) != 0
    except FileNotFoundError:
        return False


def devices() -> Iterator[NbdDevice]:
    """Every nbd device that bears a mark of ours."""
    names = os.listdir("/sys/block")  # noqa: PTH208 - names, not Paths: there may be thousands of other devices
    for name in names:
        if name.startswith("nbd") and (device := describe(int(name.removeprefix("nbd")))):
            yield device


def describe(index: int) -> NbdDevice | None:
    """What device `index` is; None if it is nobody's, or somebody else's."""
    try:
        mark = Path(f"/sys/block/nbd{index}/backend").read_bytes()
        Path(f"/sys/block/nbd{index}/pid").read_bytes()  # there only while the device has a configuration
    except OSError:
        return None
    tag = Tag.parse(mark.rstrip(b"\n"))
    return NbdDevice(index, tag) if tag else None


def connect(netlink: Netlink, connection: Connection) -> int:
    """Make a device; returns its number.

    Raises:
        DiskError: KernelError.
    """
    try:
        answer = netlink.ask(lambda family, sequence: messages.connect(family, sequence, connection))
    except OSError as error:
        raise _refused("made no nbd device", error) from error
    if answer.index is None:
        raise DiskError(Reason.KERNEL_ERROR, "the kernel made an nbd device and does not say which")
    return answer.index


def reconnect(netlink: Netlink, device: NbdDevice, socket_fd: int) -> None:
    """Give a device that lost its server another one. One that has its server keeps it.

    ENOSPC says that none of the device's sockets is known to be closed. That takes the kernel a moment after a
    server's death; if it stays so, the device was given this server already.

    Raises:
        DiskError: KernelError.
    """
    mark, deadline = bytes(device.tag).decode(), time.monotonic() + NOTICE_SECONDS
    while True:
        try:
            netlink.ask(lambda family, sequence: messages.reconnect(family, sequence, device.index, mark, socket_fd))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise _refused(f"took no other server for {device.path}", error) from error
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        else:
            return


def resize(netlink: Netlink, device: NbdDevice, size_bytes: int) -> None:
    """Give a device another size, online.

    Raises:
        DiskError: KernelError.
    """
    mark = bytes(device.tag).decode()
    try:
        netlink.ask(lambda family, sequence: messages.resize(family, sequence, device.index, mark, size_bytes))
    except OSError as error:
        raise _refused(f"did not resize {device.path}", error) from error


def try_disconnect(netlink: Netlink, device: NbdDevice) -> bool:
    """Take a device down if nobody has it open.

    NBD_CMD_DISCONNECT would yank it. So the kernel is asked to let it go with its last user, and we become a user and
    let go: were we the last one, it is gone, its dirty pages written first (drivers/block/nbd.c, `nbd_release`); if
    not, that is taken back.

    Returns:
        True if it is gone; False if it is in use.
    """
    mark = bytes(device.tag).decode()

    def on_close(*, on: bool) -> None:
        netlink.ask(lambda family, sequence: messages.disconnect_on_close(family, sequence, device.index, mark, on=on))

    try:
        with _opened(device.path):
            on_close(on=True)
        if describe(device.index) is None:
            return True
        on_close(on=False)
    except OSError as error:
        if describe(device.index) is None:
            return True
        raise _refused(f"did not let go of {device.path}", error) from error
    return describe(device.index) is None


def facts(device: NbdDevice) -> tuple[int, int, int | None]:
    """Size in bytes, logical block size and sequence number of a device. Read from sysfs, so nothing can hang."""
    folder = Path(f"/sys/block/nbd{device.index}")
    size, block = (int((folder / name).read_text(encoding="ascii")) for name in ("size", "queue/logical_block_size"))
    try:
        diskseq = int((folder / "diskseq").read_text(encoding="ascii"))
    except FileNotFoundError:  # a kernel before 5.15
        diskseq = None
    return size * 512, block, diskseq


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _refused(what: str, error: OSError) -> DiskError:
    return DiskError(Reason.KERNEL_ERROR, f"the kernel {what}: {error.strerror} (errno {error.errno})")
