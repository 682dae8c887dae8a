"""One fleet: a broker, processes full of agents, and an ear that notes when each host said what."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from tests.bench.fleet_hosts import FLEET, READY
from tests.bench.process import cpu_seconds, memory
from tests.broker import Broker, running_broker

GUEST = "app"
TARGETS = ("vda", "vdb", "vdc", "vdd")
PREFIX = f"tapster/v1/{FLEET}"

ROUND_SECONDS = 300.0
"""After this a round is given up."""

MAKE_SECONDS = 300.0
"""For the processes to import, and to make a store for each host."""

LOOK_SECONDS = 0.5
"""How often it is looked whether a round is over. When each host was, the ear has written down."""

SILENCE_SECONDS = 1.0
"""After this without an event there are no more."""

BROKER = "autosave_interval 60\n"
"""A broker for trying things out saves each second: every session, and all that is retained, each time."""


class FleetError(Exception):
    """A round did not end, or a process did. The message says what was missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round took.

    Attributes:
        name: What was done.
        seconds: Until the last host's status told of it.
        half: Until that of half of the hosts did.
        messages: Statuses and events that the hosts published meanwhile.
        lost: Numbers that are missing in the hosts' sequences of events.
        agents_cpu: Seconds of CPU of all agents together.
        broker_cpu: The broker's; after its restart, of the new one.
        broker_rss: Resident set in MB at the end.
        agents_rss: Of all processes with agents together.
        ear_cpu: Of who listens and writes down.
        pace: Milliseconds that the same piece of Python took before and after, the longer of the two.
    """

    name: str
    seconds: float
    half: float
    messages: int
    lost: int
    agents_cpu: float
    broker_cpu: float
    broker_rss: float
    agents_rss: float
    ear_cpu: float
    pace: float

    @property
    def cpu(self) -> float:
        """Of agents and broker together."""
        return self.agents_cpu + self.broker_cpu


@dataclass(slots=True)
class Ear:
    """Reads what a `mosquitto_sub` on the hosts' statuses writes: seconds, topic, payload.

    Attributes:
        latest: The newest status of each host: generation, phase, and when it was heard.
        messages: How many were heard.
    """

    file: Path
    process: "subprocess.Popen[bytes]"
    latest: dict[str, tuple[int | None, str, float]] = field(default_factory=dict)
    messages: int = 0
    _at: int = 0
    _rest: bytes = b""

    def read(self) -> None:
        """Take in what was written since."""
        with self.file.open("rb") as file:
            file.seek(self._at)
            data = self._rest + file.read()
            self._at = file.tell()
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            self._take(*line.split(b"\t", 2))

    def _take(self, at: bytes, topic: bytes, payload: bytes) -> None:
        self.messages += 1
        host = topic.decode().removeprefix(f"{PREFIX}/hosts/").split("/")[0]
        told = json.loads(payload)
        self.latest[host] = (told["observed_generation"], told["phase"], float(at))

    @property
    def cpu(self) -> float:
        """Seconds that listening and taking in have cost."""
        return cpu_seconds(self.process.pid) + time.process_time()


class Mailbox:
    """The hosts' events, which the broker keeps for a session of their own until a round is over.

    Who hears them as they come has a machine of its own in a real fleet; here it would take the hosts' cores.
    """

    def __init__(self, port: int, file: Path) -> None:
        self._command = _subscriber("mailbox", port, f"{PREFIX}/hosts/+/events/+")
        self._file = file
        self._sequences: dict[str, set[int]] = {}
        subprocess.run([*self._command, "-E"], check=True)  # it has subscribed, and the broker keeps what comes

    def empty(self) -> None:
        """Fetch what has come: all of it, once nothing more comes for a while."""
        with self._file.open("wb") as output, subprocess.Popen(self._command, stdout=output) as process:
            size = -1
            while size < (size := self._file.stat().st_size):
                time.sleep(SILENCE_SECONDS)
            process.terminate()
        for event in self._file.read_bytes().splitlines():
            session, _, number = json.loads(event)["id"].rpartition("-")
            self._sequences.setdefault(session, set()).add(int(number))

    @property
    def count(self) -> int:
        """How many have come."""
        return sum(map(len, self._sequences.values()))

    @property
    def lost(self) -> int:
        """How many numbers are missing between the first and the last of each session."""
        return sum(max(numbers) - min(numbers) + 1 - len(numbers) for numbers in self._sequences.values())


def _subscriber(client: str, port: int, topic: str) -> list[str]:
    """A command that prints what comes on a topic, in a session that stays while it is away."""
    return ["mosquitto_sub", "-V", "5", "-p", str(port), "-i", client, "-c", "-x", "3600", "-q", "1", "-t", topic]


class Fleet:
    """A fleet that runs; all methods block."""

    def __init__(
        self, hosts: int, broker: Broker, processes: list["subprocess.Popen[str]"], ear: Ear, mailbox: Mailbox
    ) -> None:
        self.hosts = hosts
        self.broker = broker
        self._processes = processes
        self._ear = ear
        self._mailbox = mailbox
        self._turn = 0

    def failing(self, share: float) -> int:
        """How many hosts a share is: of each process as many as it rounds to."""
        per_process = [self.hosts // len(self._processes)] * len(self._processes)
        return sum(sum(number < share * some for number in range(some)) for some in per_process)

    def push(self, generation: int) -> None:
        """Publish the guest's definition, with other images each time, to everyone."""
        disks = "".join(
            f"<disk type='file'><source file='/images/{target}-{generation}.img'/><target dev='{target}'/></disk>"
            for target in TARGETS
        )
        xml = f"<domain type='kvm'><name>{GUEST}</name><devices>{disks}</devices></domain>"
        document = json.dumps({"guest": GUEST, "generation": generation, "state": "present", "domain_xml": xml})
        topic = f"{PREFIX}/groups/all/desired/guests/{GUEST}"
        command = [
            "mosquitto_pub",
            "-V",
            "5",
            "-p",
            str(self.broker.port),
            "-q",
            "1",
            "-r",
            "-t",
            topic,
            "-m",
            document,
        ]
        subprocess.run(command, check=True)

    def push_and_start(self, generation: int) -> None:
        """Have everyone connect at once to a broker that has the definition already."""
        self.push(generation)
        self.tell("start")

    def tell(self, line: str) -> None:
        """Say something to all processes, and wait until they have done it, if they answer."""
        for process in self._processes:
            assert process.stdin
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        if not line.startswith("start"):
            for process in self._processes:
                assert process.stdout
                process.stdout.readline()

    def measured(self, name: str, act: Callable[[], None], generation: int, *, up: int, failed: int = 0) -> Round:
        """Do something and wait until so many hosts are up, and have failed, under a generation."""
        messages, lost = self._ear.messages + self._mailbox.count, self._mailbox.lost
        pace = _pace()
        agents, broker, ear = self._agents_cpu(), self._broker_cpu(), self._ear.cpu
        began = time.time()
        act()
        times = self._wait(name, generation, up, failed, began)
        pid = self._broker_pid()
        spent, agents_spent, ear_spent = self._broker_cpu(), self._agents_cpu(), self._ear.cpu
        pace = max(pace, _pace())
        self._mailbox.empty()
        self._ear.read()
        return Round(
            name=name,
            seconds=times[-1] - began,
            half=times[len(times) // 2] - began,
            messages=self._ear.messages + self._mailbox.count - messages,
            lost=self._mailbox.lost - lost,
            agents_cpu=agents_spent - agents,
            broker_cpu=spent - broker if spent >= broker else spent,
            broker_rss=memory(pid)[0],
            agents_rss=sum(memory(process.pid)[0] for process in self._processes),
            ear_cpu=ear_spent - ear,
            pace=pace,
        )

    def _wait(self, name: str, generation: int, up: int, failed: int, began: float) -> list[float]:
        deadline = time.monotonic() + ROUND_SECONDS
        while True:
            self._change_cores()
            self._ear.read()
            there = [one for one in self._ear.latest.values() if one[0] == generation]
            phases = [phase for _, phase, _ in there]
            if (phases.count("Up"), phases.count("Failed")) == (up, failed):
                return sorted(max(at, began) for _, _, at in there)
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                found = f"{phases.count('Up')} up and {phases.count('Failed')} failed under generation {generation}"
                raise FleetError(f"{name}: {found}; wanted are {up} and {failed}")
            time.sleep(LOOK_SECONDS)

    def _change_cores(self) -> None:
        """Have each process go on on the next core, with all its threads.

        On one, because event loop and store share Python's lock, which would go to and fro between thousands of agents.
        And on each in turn, because cores whose neighbours take more are slower, by a third at times: the hosts on such
        a one would be late, and the other core idle meanwhile.
        """
        self._turn += 1
        cores = sorted(os.sched_getaffinity(0))
        for number, process in enumerate(self._processes, self._turn):
            with suppress(FileNotFoundError, ProcessLookupError):  # who waits tells of an ended process
                for thread in Path(f"/proc/{process.pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), {cores[number % len(cores)]})

    def _agents_cpu(self) -> float:
        return sum(cpu_seconds(process.pid) for process in self._processes)

    def _broker_pid(self) -> int:
        assert self.broker._process
        return self.broker._process.pid

    def _broker_cpu(self) -> float:
        return cpu_seconds(self._broker_pid())


def _pace() -> float:
    """How fast the machine is just now, which its neighbours can change from minute to minute."""
    began = time.perf_counter()
    sum(number % 7 for number in range(1_000_000))
    return 1000 * (time.perf_counter() - began)


@contextmanager
def fleet(hosts: int, processes: int, console: Console) -> Iterator[Fleet]:
    """A fleet whose agents are made and not connected yet; it is gone after the block.

    Stores and runtime folders are in memory: thousands of hosts on one disk would measure that disk.
    """
    with ExitStack() as stack:
        broker = stack.enter_context(running_broker(BROKER))
        folder = Path(tempfile.mkdtemp(prefix="tapster-fleet-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ear = stack.enter_context(_listening(broker, folder / "heard"))
        share = hosts // processes
        started = [stack.enter_context(_hosts(folder, broker, number * share, share)) for number in range(processes)]
        began = time.monotonic()
        for process in started:
            assert process.stdout
            if process.stdout.readline().strip() != READY or time.monotonic() - began > MAKE_SECONDS:
                raise FleetError("the hosts could not be made; see what their process says above")
        console.print(f"  made in {time.monotonic() - began:.0f} s", style="dim")
        yield Fleet(share * processes, broker, started, ear, Mailbox(broker.port, folder / "events"))


@contextmanager
def _hosts(folder: Path, broker: Broker, first: int, count: int) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tests.bench.fleet_hosts", folder, broker.port, first, count]
    pipe = subprocess.PIPE
    process = subprocess.Popen([str(word) for word in command], stdin=pipe, stdout=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()  # they have nothing on this machine but their folders
        process.wait()


@contextmanager
def _listening(broker: Broker, file: Path) -> Iterator[Ear]:
    command = _subscriber("ear", broker.port, f"{PREFIX}/hosts/+/status/guests/+")
    with file.open("wb") as output:
        process = subprocess.Popen([*command, "-F", "%U\t%t\t%p"], stdout=output)
    try:
        yield Ear(file, process)
    finally:
        process.kill()
        process.wait()
