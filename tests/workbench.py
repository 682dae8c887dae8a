"""A real agent against a real broker, kernel and servers, in folders of its own, and what it left is found out.

Each bench has its own host name and runtime folder, hence its own instance mark on every loop device, so tests can
run side by side on one kernel.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from reconcilers.loop import control, minors
from reconcilers.loop.note import DeviceNotes
from reconcilers.mounts import unmount_lazily
from reconcilers.spec import Format
from reconcilers.tag import instance_id
from tests.broker import Broker, running_broker
from tests.on_host import FOLDER_PREFIX, mounts_seen_by, storage_daemons

PATIENCE = 120.0
"""Seconds after which a test gives up waiting. A bound, not a measure: everything takes milliseconds."""

FLEET = "test"

AGENT = (sys.executable, "-c", "from agent.cli.app import main; main()")


class Process(Protocol):
    """What a bench needs of its agent, however it was started."""

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...
    def kill(self) -> None: ...


class Bench:
    """One host: an agent, its broker, its folders, and an operator's ear on the bus."""

    def __init__(self, folder: Path, broker: Broker, settings: str = "") -> None:
        self.folder = folder
        self.broker = broker
        self.host = f"bench-{os.getpid()}-{folder.name[-8:].lower().replace('_', '-')}".rstrip(".-")
        self.runtime = folder / "run"
        self.images = folder / "images"
        self.images.mkdir()
        self.elsewhere = folder / "elsewhere"
        """A second image pool, to mount something on."""
        self.pools = [self.images, self.elsewhere]
        self.log = folder / "agent.log"
        self.topics = f"tapster/v1/{FLEET}/hosts/{self.host}"
        self.statuses: dict[str, dict[str, Any]] = {}
        self.messages: list[tuple[str, bytes]] = []
        self.config = folder / "tapster.toml"
        self.config.write_text(_settings(self, settings))
        self.under: list[str] = []
        self._agent: Process | None = None
        self._starts_before = 0
        self._ear = self._listen()

    # The agent.

    def start(self) -> None:
        """Start the agent; it may not have begun to work yet."""
        self._starts_before = len(self._starts()[0])
        self._agent = self._launch()

    def _launch(self) -> Process:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self.under, *AGENT, "run", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the agent and wait for its end; returns its exit code."""
        assert self._agent is not None
        self._agent.send_signal(number)
        code = self._agent.wait(PATIENCE)
        self._agent = None
        return code

    def send(self, number: signal.Signals) -> None:
        """Send the agent a signal."""
        assert self._agent is not None
        self._agent.send_signal(number)

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the agent and start it again, and wait until it has looked at everything."""
        self.stop(number)
        self.start()
        self.wait_synced()

    @property
    def running(self) -> bool:
        """Whether the agent's process is there."""
        return self._agent is not None and self._agent.poll() is None

    @property
    def pid(self) -> int:
        """The agent's process."""
        assert isinstance(self._agent, subprocess.Popen)
        return self._agent.pid

    def log_lines(self) -> list[dict[str, Any]]:
        """The agent's log so far, parsed, without a line that it is writing: the kernel shows a write page by page."""
        whole, _, _ = self.log.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def wait_synced(self) -> None:
        """Wait until the newest run of the agent says that it is in step with the bus."""

        def synced() -> bool:
            starts, lines = self._starts()
            return len(starts) > self._starts_before and "everything retained has arrived" in lines[starts[-1] :]

        self.until(synced)

    def _starts(self) -> tuple[list[int], list[str]]:
        lines = [line["event"] for line in self.log_lines()] if self.log.exists() else []
        return [number for number, event in enumerate(lines) if event == "started"], lines

    # The bus.

    def publish(
        self, topic: str, payload: bytes | str, *, retain: bool = True, properties: Mapping[str, str] | None = None
    ) -> None:
        """Publish as an operator does, with user properties."""
        packet = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        packet.UserProperty = list((properties or {}).items())
        data = payload.encode() if isinstance(payload, str) else payload
        self.until(self._ear.is_connected)
        self._ear.publish(topic, data, qos=1, retain=retain, properties=packet).wait_for_publish(PATIENCE)

    def push(self, guest: str, document: bytes | str, **properties: str) -> None:
        """Publish a desired document for this host; keyword arguments become user properties."""
        self.publish(f"{self.topics}/desired/guests/{guest}", document, properties=properties)

    def push_disks(self, guest: str, *disks: str) -> None:
        """Publish a domain with these `<disk>` elements."""
        self.push(guest, domain(guest, *disks))

    def absent(self, guest: str, generation: int | None = None) -> None:
        """Publish the document that takes a guest's disks down."""
        self.push(guest, json.dumps({"guest": guest, "generation": generation, "state": "absent"}))

    def resync(self) -> None:
        """Have the agent look at everything anew."""
        self.publish(f"{self.topics}/cmd/resync", "now", retain=False)

    def disk(self, guest: str, target: str) -> dict[str, Any]:
        """The latest status of one disk; empty if there is none."""
        disks = self.statuses.get(guest, {}).get("disks", [])
        return next((disk for disk in disks if disk["target"] == target), {})

    def condition(self, guest: str, kind: str) -> dict[str, Any]:
        """The latest condition of that type; empty if there is none."""
        conditions = self.statuses.get(guest, {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """The events so far whose type begins with `kind`."""
        payloads = [payload for topic, payload in self.messages if "/events/" in topic]
        return [event for event in map(json.loads, payloads) if event["type"].startswith(kind)]

    def births(self) -> list[dict[str, Any]]:
        """What the agent has said of itself so far, or its broker for it."""
        return [json.loads(payload) for topic, payload in self.messages if topic == f"{self.topics}/agent" and payload]

    # Waiting.

    def until(self, holds: Callable[[], Any]) -> None:
        """Wait until something holds; after `PATIENCE`, fail with what is known."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > deadline:
                tail = self.log.read_text()[-4000:] if self.log.exists() else "(no log)"
                words = f"status: {json.dumps(self.statuses, indent=1)}\nlog: {tail}\nthreads: {self._threads()}"
                raise AssertionError(f"it never came true\n{words}")
            time.sleep(0.005)

    def waits_in(self, function: str) -> bool:
        """Whether one of the agent's threads waits in that function of the kernel (proc_pid_wchan(5))."""
        return any(task.read_text() == function for task in Path(f"/proc/{self.pid}/task").glob("*/wchan"))

    def _threads(self) -> str:
        """What the agent's threads wait for in the kernel: a disk that is slow to sync, for example."""
        told = list[str]()
        here = self.running and isinstance(self._agent, subprocess.Popen)
        for task in Path(f"/proc/{self.pid}/task").glob("*") if here else ():
            with suppress(OSError):
                told += [
                    (task / "comm").read_text().strip(),
                    (task / "wchan").read_text(),
                    (task / "stack").read_text(),
                ]
        return "\n".join(told)

    def until_phase(self, guest: str, target: str, phase: str) -> dict[str, Any]:
        """Wait until a disk is in a phase; returns its status."""
        self.until(lambda: self.disk(guest, target).get("phase") == phase)
        return self.disk(guest, target)

    def until_status(self, guest: str, target: str, **fields: object) -> None:
        """Wait until a disk's status has these fields; lists are compared as sorted."""

        def shown(value: object) -> object:
            return sorted(value) if isinstance(value, list) else value

        self.until(lambda: all(shown(self.disk(guest, target).get(name)) == fields[name] for name in fields))

    def until_guest(self, guest: str, phase: str) -> dict[str, Any]:
        """Wait until a guest is in a phase; returns its status."""
        self.until(lambda: self.statuses.get(guest, {}).get("phase") == phase)
        return self.statuses[guest]

    # Images and devices.

    def image(self, name: str, size: int = 1 << 20) -> Path:
        """A sparse raw image."""
        path = self.images / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def formatted(self, name: str, fmt: str, size: int = 8 << 20) -> Path:
        """An image of one of qemu-img's formats."""
        path = self.images / name
        subprocess.run(["qemu-img", "create", "-q", "-f", fmt, path, str(size)], check=True)
        return path

    def stable(self, guest: str, target: str) -> Path:
        """The path that a hypervisor would be given."""
        return self.runtime / "disks" / guest / target

    def loops(self) -> list[control.LoopDevice]:
        """This bench's loop devices."""
        notes = DeviceNotes(self.runtime / "loops")
        known = {disk: note for disk in notes.disks() if (note := notes.read(disk))}
        devices = [device for minor in minors.bound() if (device := control.describe(minor))]
        for number, device in enumerate(devices):
            for disk, note in known.items():
                if device.error and note.is_of(device):
                    devices[number] = note.added_to(device, self._instance, disk)
        return [device for device in devices if self._is_ours(device)]

    def servers(self) -> list[int]:
        """Process ids of this bench's storage daemons."""
        return sorted(pid for pid, words in storage_daemons() if str(self.runtime) in words)

    def mounts(self) -> list[Path]:
        """This bench's FUSE mounts, in the jails of its servers or outside."""
        seen = [Path(words[1]) for pid in [*map(str, self.servers()), "self"] for words in mounts_seen_by(pid)]
        return [path for path in seen if path.is_relative_to(self.runtime)]

    def _exports(self) -> list[Path]:
        return [
            tap / "export" for tap in self.runtime.glob("taps/*")
        ]  # glob itself fails on the mount of a dead server

    def assert_clean(self) -> None:
        """Nothing of this bench's is left on the host."""
        assert self.loops() == []
        assert self.servers() == []
        assert self.mounts() == []
        assert not list(self.runtime.glob("disks/*"))
        assert not list(self.runtime.glob("taps/*"))
        assert not list(self.runtime.glob("loops/*"))
        assert not list(self.runtime.glob("outages/*"))

    def close(self) -> None:
        """End everything and take down by force what is left."""
        if self._agent is not None:
            self._agent.kill()
            self._agent.wait()
        self._ear.disconnect()
        self._ear.loop_stop()
        for pid in self.servers():  # the device over a stopped one would hang whoever looks at it
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for device in self.loops():
            for _ in range(200):  # an agent beside us may have each device open for a moment, to look at it
                if control.try_detach(device):
                    break
                time.sleep(0.01)
        for pid in self.servers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for tap in self.runtime.glob("taps/*"):  # and not "taps/*/export": a dead mount is nothing to look at
            unmount_lazily(tap / "export")
        for mount in self._exports():
            unmount_lazily(mount)

    @property
    def _instance(self) -> str:
        return instance_id(FLEET, self.host, str(self.runtime))

    def _is_ours(self, device: control.LoopDevice) -> bool:
        if device.tag:
            return device.tag.instance == self._instance
        return (device.backing_path or "").startswith(str(self.runtime))

    def _listen(self) -> mqtt.Client:
        ear = mqtt.Client(CallbackAPIVersion.VERSION2, f"ear-{self.host}", protocol=mqtt.MQTTv5)
        ear.on_connect = lambda client, *_: client.subscribe("tapster/#", qos=1)
        ear.on_message = self._hear
        ear.reconnect_delay_set(1, 1)
        self._dial(ear)
        ear.loop_start()
        return ear

    def _dial(self, ear: mqtt.Client) -> None:
        ear.connect(self.broker.host, self.broker.port)

    def _hear(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        self.messages.append((message.topic, bytes(message.payload)))
        if message.topic.startswith(f"{self.topics}/status/guests/"):
            guest = message.topic.rpartition("/")[2]
            if message.payload:
                self.statuses[guest] = json.loads(message.payload)
            else:
                self.statuses.pop(guest, None)


@contextmanager
def bench(settings: str = "", broker: Broker | None = None) -> Iterator[Bench]:
    """A host with its agent running; `settings` are more lines of TOML. Everything is gone after the block."""
    with running_broker() if broker is None else _given(broker) as chosen:
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        host = Bench(folder, chosen, settings)
        try:
            host.start()
            host.wait_synced()
            yield host
        finally:
            host.close()
            shutil.rmtree(folder)


@contextmanager
def _given(broker: Broker) -> Iterator[Broker]:
    yield broker


def domain(guest: str, *disks: str) -> str:
    """A domain with these `<disk>` elements."""
    return f"<domain type='kvm'><name>{guest}</name><devices>{''.join(disks)}</devices></domain>"


def loop_disk(target: str, path: Path, more: str = "") -> str:
    """A disk for the loop backend."""
    return f"<disk type='file'><driver name='loop'/><source file='{path}'/><target dev='{target}'/>{more}</disk>"


def tap_disk(target: str, path: Path, fmt: str = "aio", more: str = "") -> str:
    """A disk for blktap."""
    driver = f"<driver name='tap2' type='{fmt}'/>"
    return f"<disk type='file'>{driver}<source file='{path}'/><target dev='{target}'/>{more}</disk>"


# What a machine has besides is tested where it is asked for.
_TAPS = f"""
servers = ["storage-daemon"]
devices = ["fuse-loop"]
formats = {json.dumps([fmt for fmt in Format if fmt != "raw"])}
"""


def _settings(host: Bench, more: str) -> str:
    pace = "" if "[controller]" in more else "[controller]\nretry_min = 0.05\nretry_max = 0.3"
    pools = f"\npools = {json.dumps([str(pool) for pool in host.pools])}"
    images = "[images]" + ("" if "pools =" in more else pools)
    images += "" if "devices =" in more else '\ndevices = ["/dev/loop*"]'
    more = more.replace("[images]", images) if "[images]" in more else f"{more}\n{images}"
    more += "" if "[blktap]" in more else f"\n[blktap]\n{_TAPS}"
    return f"""
host = "{host.host}"
fleet = "{FLEET}"
[broker]
port = {host.broker.port}
reconnect_min = 0.1
reconnect_max = 0.5
[paths]
runtime = "{host.runtime}"
state = "{host.folder}/state"
{pace}
{more}
"""
