"""A host as the tests have it, with an ear that notes when each status arrived, and that hears nothing else.

What is heard is parsed in this process, on a core that agent and broker would have otherwise: it is part of what a
fleet costs, and small beside it.
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from reconcilers.mounts import unmount_lazily
from tests.bench import bare_client
from tests.bench.process import cpu_seconds
from tests.broker import Broker, running_broker
from tests.on_host import FOLDER_PREFIX
from tests.workbench import Bench

PATIENCE = 60.0
"""Seconds until a measure is given up."""

SETTINGS = f"""
[log]
level = "info"
[images]
pools = ["{tempfile.gettempdir()}"]
"""


@dataclass(frozen=True, slots=True)
class Heard:
    """One status of one guest, and when it came (seconds since the epoch, to compare with the agent's log)."""

    at: float
    guest: str
    status: dict[str, Any]


class MeasuredHost(Bench):
    """A bench that keeps what it heard with times."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.heard: list[Heard] = []
        self.up: dict[str, float] = {}
        super().__init__(folder, broker, SETTINGS)

    @property
    def pid(self) -> int:
        """The agent's process id."""
        assert isinstance(self._agent, subprocess.Popen)
        return self._agent.pid

    def forget(self) -> None:
        """Hear anew."""
        self.heard.clear()
        self.up.clear()

    def wait(self, holds: Callable[[], Any], what: str) -> None:
        """Wait until something holds; times come from what was heard, so this one's pace is in no figure."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > deadline or not self.running:
                raise RuntimeError(f"{what}: it never came true\n{self.log.read_text()[-4000:]}")
            time.sleep(0.002)

    def wait_up(self, count: int) -> float:
        """Wait until so many guests were heard to be up; returns when the last one was."""
        self.wait(lambda: len(self.up) >= count, f"{count} guests up")
        return max(self.up.values())

    def began(self) -> float:
        """When the newest run of the agent was ready to connect."""
        line = [line for line in self.log_lines() if line["event"] == "started"][-1]
        return datetime.fromisoformat(line["timestamp"]).timestamp()

    def push_all(self, documents: Mapping[str, str]) -> None:
        """Publish many documents, all in flight at once, and wait until the broker has them."""
        sent = [
            self._ear.publish(f"{self.topics}/desired/guests/{guest}", document, qos=1, retain=True)
            for guest, document in documents.items()
        ]
        for one in sent:
            one.wait_for_publish(PATIENCE)

    def wait_began(self) -> float:
        """Wait until the agent is ready to connect; returns the CPU seconds that its start took."""
        self.wait(lambda: '"event": "started"' in self.log.read_text(), "the start of the agent")
        return cpu_seconds(self.pid)

    def broker_cpu(self) -> float:
        """CPU seconds that the broker has had."""
        broker = self.broker._process
        assert broker is not None
        return cpu_seconds(broker.pid)

    def _listen(self) -> mqtt.Client:
        ear = mqtt.Client(CallbackAPIVersion.VERSION2, f"ear-{self.host}", protocol=mqtt.MQTTv5)
        ear.max_inflight_messages_set(0xFFFF)
        ear.on_socket_open = bare_client.send_at_once
        ear.on_connect = lambda client, *_: client.subscribe(f"{self.topics}/status/guests/#", qos=1)
        ear.on_message = self._hear
        ear.connect(self.broker.host, self.broker.port)
        ear.loop_start()
        return ear

    def _hear(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        at, guest = time.time(), message.topic.rpartition("/")[2]
        status = json.loads(message.payload) if message.payload else {}
        self.statuses[guest] = status
        self.heard.append(Heard(at, guest, status))
        if status.get("phase") == "Up":
            self.up.setdefault(guest, at)
        else:
            self.up.pop(guest, None)


@contextmanager
def measured_host() -> Iterator[MeasuredHost]:
    """A host with a broker of its own, whose agent is not started yet. Everything is gone after the block."""
    with running_broker() as broker:
        folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}bench-"))
        try:
            with _in_memory(folder / "run"), closing(MeasuredHost(folder, broker)) as host:
                yield host
        finally:
            shutil.rmtree(folder)


@contextmanager
def _in_memory(runtime: Path) -> Iterator[None]:
    """Have the runtime folder in memory, as below the /run that systemd mounts; the store stays on a disk.

    In a container /run is often on a disk. ext4 gives no inode away again within a minute (fs/ext4/ialloc.c,
    `recently_deleted`), so that after a few runs making files there takes longer than all else that is measured.
    """
    runtime.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,mode=755", "tmpfs", runtime], check=True)
    try:
        yield
    finally:
        unmount_lazily(runtime)
