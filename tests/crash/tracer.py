"""`python -m tests.crash.tracer PID FOLDER [NAME NUMBER]`: tell each effect of a process, or kill it before one.

Prints `ready`, then the name of each effect before it happens. Given a point, the process is killed in front of the
effect of that name that comes as that number, counted from 1, and `killed` is printed. End the tracer, and the process
goes on untouched.
"""

import sys
from collections import Counter
from pathlib import Path

from tests.crash.effects import Effects, UnclassifiedError
from tests.crash.ptrace import SystemCall, watch

READY = "ready"
KILLED = "killed"
UNCLASSIFIED = "unclassified: "

ONE_IN_A_ROW = ("LOOP_CONFIGURE", "F_OFD_SETLK", "F_SETLEASE")
"""What counts once however often it comes in a row.

A loop device that is lost to others is followed by the next, on a busy host often. The locks of one image all die with
the agent until a device or a server has the file.
"""


class Watcher:
    """Tells effects, and says when to stop."""

    def __init__(self, effects: Effects, name: str, number: int) -> None:
        self._effects = effects
        self._point = name, number
        self._seen = Counter[str]()
        self._last = ""

    def may_go_on(self, call: SystemCall) -> bool:
        """Tell the effect of a call, if it has one; False at the point."""
        try:
            effect = self._effects.name(call)
        except UnclassifiedError as error:
            effect = f"{UNCLASSIFIED}{error}"
        if effect is None or (effect == self._last and effect.startswith(ONE_IN_A_ROW)):
            return True
        if not effect.startswith("MQTT"):
            self._last = effect
        tell(effect)
        self._seen[effect] += 1
        if (effect, self._seen[effect]) != self._point:
            return True
        tell(KILLED)
        return False


def tell(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(pid: int, folder: Path, name: str = "", number: int = 0) -> None:
    """Watch process `pid`, whose own things are in `folder`."""
    watch(pid, Watcher(Effects(folder), name, number).may_go_on, lambda: tell(READY))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), "".join(sys.argv[3:4]), *map(int, sys.argv[4:]))
