"""The kernel's slots for asynchronous I/O: how many requests all processes of a host may have under way (io_setup(2)).

fs.aio-max-nr limits them, to 65536 unless somebody raised it: enough for 81 tapdisks, or for 64 storage daemons with
native I/O. With threads, the default, or io_uring a storage daemon takes none (all measured).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconcilers.errors import DiskError
from reconcilers.reason import Reason

OF_A_TAPDISK = 804
"""Two queues of 402."""

OF_NATIVE_IO = 1024
"""What QEMU takes for io='native'."""

RAISE = "sysctl -w fs.aio-max-nr=1048576"
"""The number that databases' manuals ask for; slots cost memory only when they are taken."""


def free() -> tuple[int, int]:
    """How many are left, and of how many; the former is below zero once the limit was lowered."""
    used, most = (int(Path(f"/proc/sys/fs/{name}").read_text(encoding="ascii")) for name in ("aio-nr", "aio-max-nr"))
    return most - used, most


@contextmanager
def taking(slots: int, what: str) -> Iterator[None]:
    """Around the start of something that takes so many. 0 is no question at all.

    Others take some at the same time, and what gets none tells nobody why: tapdisk writes it to syslog and ends, which
    `tap-ctl` calls EPERM. So it is looked for again where the start has failed.

    Raises:
        DiskError: AioSlotsTaken.
    """
    _refuse_without(slots, what)
    try:
        yield
    except DiskError as error:
        if error.reason is Reason.SERVER_FAILED:
            _refuse_without(slots, what)
        raise


def _refuse_without(slots: int, what: str) -> None:
    left, most = free()
    if slots and left < slots:
        message = (
            f"{what} takes {slots} of the host's {most} slots for asynchronous I/O, of which {max(0, left)} are left; "
            f"raise the limit: {RAISE}, and in /etc/sysctl.d for the next boot"
        )
        raise DiskError(Reason.AIO_SLOTS_TAKEN, message)
