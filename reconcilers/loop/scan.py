"""A look at every bound loop device of the host that one hung file system can't hold up.

LOOP_GET_STATUS64 asks the file system under the backing file, and a stopped tap or a lost NFS server lets it wait for
ever. Such a device is described from the outside, and not asked again before its first question was answered.
"""

import threading
from collections import deque

from reconcilers.errors import DiskError
from reconcilers.loop import control, minors
from reconcilers.loop.control import LoopDevice

STALLED_SECONDS = 0.5
"""A device that has not answered for so long is passed over; the others take well under a millisecond each."""

_unanswered: dict[int, threading.Thread] = {}


def bound_devices() -> list[LoopDevice]:
    """Every bound loop device of the host, ours or not.

    Raises:
        DiskError: KernelError; nothing can be concluded from what was seen until then.
    """
    answers: dict[int, LoopDevice | None] = {}
    waiting = deque[int]()
    for minor in minors.bound():
        if (earlier := _unanswered.get(minor)) and earlier.is_alive():
            answers[minor] = control.describe_outside(minor)
        else:
            waiting.append(minor)
    while waiting:
        asker = _Asker(waiting, answers)
        asker.start()
        while asker.is_alive():
            asked = asker.minor
            asker.join(STALLED_SECONDS)
            if asker.is_alive() and asked is not None and asker.minor == asked:
                asker.abandoned = True
                _unanswered[asked] = asker
                answers[asked] = control.describe_outside(asked)
                break
        if asker.error is not None:
            raise asker.error
    return [device for _, device in sorted(answers.items()) if device]


class _Asker(threading.Thread):
    """Asks one device after the other. A daemon, as a thread that hangs in the kernel can't be joined."""

    def __init__(self, waiting: deque[int], answers: dict[int, LoopDevice | None]) -> None:
        super().__init__(name="loop-scan", daemon=True)
        self.minor: int | None = None
        self.abandoned = False
        self.error: DiskError | None = None
        self._waiting = waiting
        self._answers = answers

    def run(self) -> None:
        """Ask until all have answered, one raises, or this one is abandoned."""
        try:
            while self._waiting and not self.abandoned:
                self.minor = self._waiting.popleft()
                answer = control.describe(self.minor)
                if not self.abandoned:
                    self._answers[self.minor] = answer
        except DiskError as error:
            self.error = error
