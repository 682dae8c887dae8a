"""Random lives of a host for as long as you like, each from a seed of its own that is printed first.

    python -m tests.fire.soak --minutes 60
    python -m tests.fire.soak --seed 4711       one life again

Run it as root where the tests run. It stops by itself: at the time given, once the life that it is at has come to
rest, or at the first life that is not as the model says, which is then shown with its seed.
"""

import argparse
import random
import time

from tests.broker import running_broker
from tests.fire.machine import Machine
from tests.fire.test_model import live
from tests.on_host import belongings

STEPS = 200


def main() -> None:
    """Live, print, live again."""
    parser = argparse.ArgumentParser(prog="python -m tests.fire.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="begin nothing new after so long")
    parser.add_argument("--seed", type=int, help="only the life of this seed")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    lives = 0
    with running_broker() as broker:
        while time.monotonic() < until and not (options.seed and lives):
            chosen = options.seed or random.randrange(1, 2**32)
            print(f"seed {chosen}", flush=True)
            live(broker, chosen, lives=1, steps=STEPS, until=until)
            if left := belongings():
                raise SystemExit(f"seed {chosen} left these on the host: {sorted(left)}")
            lives += 1
    print(f"{lives} lives, {Machine.happened} things happened, all as the model says")


if __name__ == "__main__":
    main()
