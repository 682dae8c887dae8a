"""Random lives of a host: after each rest, what is there is what the model says, and so is every byte in the end.

For hours, by hand: `python -m tests.fire.soak --minutes 60`. One that failed again: `pytest tests/fire --fire-seed N`.
"""

import itertools
import random

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.broker import Broker
from tests.fire.machine import Machine

STEPS_OF_ONE = 50
STEPS = 200
"""Of all lives together; they take about a second each."""


@pytest.mark.timeout(1200)
def test_whatever_happens_the_host_is_as_the_model_says(
    host_parts: None, broker: Broker, request: pytest.FixtureRequest
) -> None:
    first, before = int(request.config.getoption("--fire-seed") or random.randrange(2**32)), Machine.happened
    for chosen in itertools.count(first):
        print(f"--fire-seed {chosen}")
        live(broker, chosen, lives=1, steps=STEPS_OF_ONE)
        if request.config.getoption("--fire-seed") or Machine.happened - before >= STEPS:
            break
    print(f"{Machine.happened - before} things happened")


def live(broker: Broker, chosen: int, *, lives: int, steps: int, until: float = float("inf")) -> None:
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
