"""`python -m tests.bench.fleet_hosts FOLDER PORT FIRST COUNT`: many agents in one process.

Each is the daemon of `agent/daemon.py` with a store, a session with the broker and a name of its own; only its kernel
is simulated. It prints `ready` once all are made. Then it reads lines: `start` has all of them connect at once, `fail
SHARE` makes that share of the hosts fail from now on, `mend` ends that, and the end of input ends it.

What thousands of agents in one process cost each other, and agents on hosts of their own do not, is kept out of it: the
process looks for garbage as often as one agent would, and whoever starts it keeps its threads together on one core.
"""

import asyncio
import gc
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import agent.host
from agent import garbage
from agent import log as logging_setup
from agent.bus.topics import Topics
from agent.daemon import Daemon
from agent.definition import Limits
from agent.intake import Intake
from agent.settings import Settings
from agent.store import Store
from agent.trust.policy import Trust
from reconcilers.abilities import HostAbilities
from reconcilers.blktap.abilities import TapAbilities
from reconcilers.jail.launcher import Launcher
from reconcilers.jail.profile import Jail
from reconcilers.spec import Backend
from tests.bench.simulated_host import SimulatedHost

FLEET = "bench"
READY = "ready"


def host_name(number: int) -> str:
    """The name of one host of the fleet."""
    return f"host{number:06}"


def settings(folder: Path, port: int, number: int) -> Settings:
    """One host's: as they come, but for the pauses between attempts to connect."""
    home = folder / host_name(number)
    return Settings.model_validate(
        {
            "host": host_name(number),
            "fleet": FLEET,
            "broker": {"port": port, "reconnect_min": 1.0, "reconnect_max": 5.0, "connect_timeout": 60.0},
            "paths": {"runtime": str(home / "run"), "state": str(home / "state")},
            "images": {"pools": ["/images"]},
            "controller": {"retry_min": 1.0, "retry_max": 5.0, "resync": 3600.0},
        }
    )


def abilities() -> HostAbilities:
    """What the simulated kernel can do."""
    why = "the simulated kernel has no taps"
    taps = TapAbilities(servers={}, devices=(), formats=frozenset(), missing=why, starter=Launcher(), jail=Jail.REQUIRE)
    return HostAbilities(missing={Backend.BLKTAP: why}, taps=taps, kernel="simulated")


async def run(folder: Path, port: int, numbers: range) -> None:
    """Be these hosts until the end of input."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(4))
    simulated: dict[str, SimulatedHost] = {}

    def make_host(runtime: Path, *_: Any, **__: Any) -> SimulatedHost:
        return simulated.setdefault(runtime.parent.name, SimulatedHost(runtime))

    setattr(agent.host, "Host", make_host)  # noqa: B010 - in place of the real one, which mypy rightly minds
    stop = asyncio.Event()
    with ThreadPoolExecutor(1) as store_thread:
        daemons = [
            await loop.run_in_executor(store_thread, _daemon, settings(folder, port, number), store_thread)
            for number in numbers
        ]
        assert len(simulated) == len(daemons), "the agents would use this machine's kernel"
        garbage.look_seldom()
        # For each agent as often as on a host of its own: a look walks over those of all the others as well.
        young, *older = gc.get_threshold()
        gc.set_threshold(len(numbers) * young, *older)
        _tell(READY)
        lines = await _lines()
        await lines.readline()
        async with asyncio.TaskGroup() as tasks:
            for daemon in daemons:
                tasks.create_task(daemon.run(stop))
            while line := (await lines.readline()).decode().split():
                share = float(line[1]) if line[0] == "fail" else 0.0
                for number, name in enumerate(sorted(simulated)):
                    simulated[name].failing = number < share * len(simulated)
                _tell(line[0])
            stop.set()


def _daemon(chosen: Settings, store_thread: ThreadPoolExecutor) -> Daemon:
    store = Store.open(chosen.paths.state / "store.sqlite")
    trust = Trust.begin(chosen.trust, chosen.fleet, store.trust())
    intake = Intake(store, Topics(chosen.fleet, chosen.host), Limits(), guests_max=chosen.limits.guests, trust=trust)
    return Daemon(chosen, abilities(), intake, store_thread)


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _tell(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging_setup.configure("error", "json")
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    where, port, first, count = Path(sys.argv[1]), *map(int, sys.argv[2:])
    asyncio.run(run(where, port, range(first, first + count)))
