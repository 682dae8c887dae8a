"""Random lives of a host: after each rest, what is there is what the model says, and so is every byte in the end.

For hours, by hand: `python -m tests.fire.soak --minutes 60`. One that failed again: `pytest tests/fire --fire-seed N`.
"""

import random
import time

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.broker import Broker
from tests.fire.machine import Machine

LIVES = 5
STEPS = 40
ENOUGH_SECONDS = 70.0


@pytest.mark.timeout(400)
def test_whatever_happens_the_host_is_as_the_model_says(
    host_parts: None, broker: Broker, request: pytest.FixtureRequest
) -> None:
    chosen = int(request.config.getoption("--fire-seed") or random.randrange(2**32))
    print(f"--fire-seed {chosen}")
    live(broker, chosen, lives=LIVES, steps=STEPS, until=time.monotonic() + ENOUGH_SECONDS)
    print(f"{Machine.happened} things happened")


def live(broker: Broker, chosen: int, *, lives: int, steps: int, until: float) -> None:
    """Let hosts live through random events. The failing life is not made smaller: each of its steps takes time."""
    machine = type("Life", (Machine,), {"broker": broker, "deadline": until})
    run_state_machine_as_test(
        seed(chosen)(machine),
        settings=settings(
            max_examples=lives + 1,  # the first is always the dullest there is: one rule, over and over
            stateful_step_count=steps,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
