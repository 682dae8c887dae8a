"""The benchmark on a Debian kernel that qemu emulates, where this host's lacks the module nbd.

    python -m tests.bench.emulated --only taps --taps 4 --rounds 2    its options are those of tests.bench

Run it as root on Debian, with mmdebstrap and qemu-system-x86 (`deploy/test --vm` installs them). Programs, kernel and
devices are all some twenty times slower there, so that little but the ratios means anything, and those not much.
"""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.system.emulator import missing, run
from tests.system.machine import CHECKOUT

PACKAGES = ("fio", "nbd-client")


def main() -> int:
    """Boot, measure, switch off."""
    if lacking := missing():
        print(f"this machine has no {lacking}")
        return 1
    made = subprocess.run([CHECKOUT / "deploy/lib/make-root"], check=True, stdout=subprocess.PIPE, text=True).stdout
    measure = f"modprobe nbd max_part=0 && exec python3 -m tests.bench {shlex.join(sys.argv[1:])}"
    command = f"/bin/sh -c {shlex.quote(measure)}"
    with tempfile.TemporaryDirectory(prefix="tapster-emulated-", dir=CHECKOUT / ".cache") as folder:
        root = Path(made.splitlines()[-1]) / "root"
        return run([root], Path(folder), command, lambda line: print(line, flush=True), packages=PACKAGES)


if __name__ == "__main__":
    sys.exit(main())
