"""The numbers of loop devices: which there are, which are bound, and which are worth trying next.

What /dev/loop-control does is here too; what a device does once it has a number is in `control`.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from reconcilers import sysfs
from reconcilers.errors import DiskError
from reconcilers.reason import Reason

LOOP_MAJOR = 7
_LOOP_CTL_ADD = 0x4C80  # include/uapi/linux/loop.h
_LOOP_CTL_REMOVE = 0x4C81


def node(minor: int) -> str:
    """The node of loop device number `minor`."""
    return f"/dev/loop{minor}"


class LoopNumbers:
    """Which numbers are worth trying, so that no attach has to walk all devices (LOOP_CTL_GET_FREE is O(n)).

    A hint, not a claim: the kernel decides, and a number lost to somebody else is just passed over.
    """

    def __init__(self) -> None:
        self._free: set[int] = set()
        self._taken: set[int] = set()
        self._next = 0
        self._looking = threading.Lock()

    def learn(self) -> None:
        """Read sysfs. Where there are thousands that takes long, and what other threads take meanwhile is not free."""
        with self._looking:
            self._taken.clear()
            known = _minors()
            free = {minor for minor in known if not is_bound(minor)}
            self._next = max(known, default=-1) + 1
            self._free = free - self._taken

    def take(self) -> int:
        """A number to try next; its node exists."""
        try:  # rather than to look first: other threads take numbers too
            number = self._free.pop()
        except KeyError:
            return self.make()
        self._taken.add(number)
        return number

    def make(self) -> int:
        """A number that was not there until now."""
        with _control() as control_fd:
            while True:
                number, self._next = self._next, self._next + 1
                try:
                    fcntl.ioctl(control_fd, _LOOP_CTL_ADD, number)
                except FileExistsError:
                    continue
                except OSError as error:
                    raise DiskError(
                        Reason.NO_LOOP_DEVICE,
                        f"the kernel made no loop device {number}: {error.strerror}; is the loop module loaded?",
                    ) from error
                self._taken.add(number)
                return number

    def give_back(self, minor: int) -> None:
        """The device with this number was detached."""
        self._taken.discard(minor)
        self._free.add(minor)


def bound() -> list[int]:
    """Numbers of all loop devices that have a backing file, ours or not."""
    return sorted(minor for minor in _minors() if is_bound(minor))


def is_bound(minor: int) -> bool:
    """Whether a loop device has a backing file: then it has a `loop` folder (drivers/block/loop.c)."""
    return sysfs.exists(f"/sys/block/loop{minor}/loop")


def _minors() -> set[int]:
    names = os.listdir("/sys/block")  # noqa: PTH208 - names, not Paths
    return {int(name.removeprefix("loop")) for name in names if name.startswith("loop")}


def retire(minor: int) -> None:
    """Have the kernel forget a number that is bound no more; one that somebody has open stays as it is."""
    with _control() as control_fd, suppress(OSError):
        fcntl.ioctl(control_fd, _LOOP_CTL_REMOVE, minor)


@contextmanager
def _control() -> Iterator[int]:
    fd = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
