"""An agent with nothing to do does nothing."""

import subprocess
import time

from tests.bench.process import cpu_seconds
from tests.workbench import Bench, loop_disk, tap_disk


def test_an_idle_agent_lets_the_processor_be(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")), tap_disk("vdb", bench.image("b.img")))
    bench.until_guest("vm1", "Up")
    assert isinstance(bench._agent, subprocess.Popen)
    time.sleep(0.5)  # the host's own status follows
    before = cpu_seconds(bench._agent.pid)
    time.sleep(1)
    assert cpu_seconds(bench._agent.pid) - before < 0.1
