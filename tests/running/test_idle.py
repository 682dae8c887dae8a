"""An agent with nothing to do does nothing."""

import subprocess
import time

from tests.bench.process import cpu_seconds
from tests.workbench import Bench, loop_disk, tap_disk


def test_an_idle_agent_lets_the_processor_be(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")), tap_disk("vdb", bench.image("b.img")))
    bench.until_guest("vm1", "Up")
    assert isinstance(bench._agent, subprocess.Popen)
    agent = bench._agent.pid

    def idle_for_a_second() -> bool:
        before = cpu_seconds(agent)
        time.sleep(1)
        return cpu_seconds(agent) - before < 0.1

    bench.until(idle_for_a_second)  # what follows a start, the host's own status for one, takes its time
