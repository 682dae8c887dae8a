"""Everything that may happen to the disks of a host, in random order, with a model that says what must come of it."""

import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from reconcilers.blktap import crashes
from reconcilers.spec import DiskKey
from reconcilers.tag import disk_id
from tests.broker import Broker
from tests.fire.images import Images
from tests.fire.model import Holder, Model, Wanted
from tests.fire.seen import Device
from tests.workbench import bench, domain

PATIENCE = 60.0
SETTINGS = "[controller]\nretry_min = 0.05\nretry_max = 0.3\nresync = 5\n[images]\nhard_links = true"

GUESTS = ("vm1", "vm2", "vm3")
TARGETS = ("vda", "vdb")
RAW, QCOW2 = 4, 2

keys = st.builds(DiskKey, st.sampled_from(GUESTS), st.sampled_from(TARGETS))
raw_images = st.sampled_from([f"raw-{number}" for number in range(RAW)])
qcow2_images = st.sampled_from([f"qcow2-{number}" for number in range(QCOW2)])
images = raw_images | qcow2_images
read_only = st.sampled_from([False, False, False, True])
disks = st.builds(Wanted, raw_images, st.sampled_from(["loop", "loop", "aio"]), read_only) | st.builds(
    Wanted, qcow2_images, st.just("qcow2"), read_only
)
rests = st.sampled_from([True, True, True, False])
"""Whether all is to come to rest before the next thing happens."""


class Machine(RuleBasedStateMachine):
    """One agent, three guests of two disks, and six images that they compete for."""

    broker: Broker
    deadline = float("inf")
    """On the monotonic clock; afterwards nothing happens any more."""
    happened = 0
    """Over all runs."""

    def __init__(self) -> None:
        super().__init__()
        self.history = list[str]()
        self.kills = Counter[DiskKey]()
        """With one more death of its server a disk would rest for minutes, as crash loops do."""
        self.stack = ExitStack()
        try:
            self.bench = self.stack.enter_context(bench(SETTINGS, self.broker))
            self.images = Images(self.bench, RAW, QCOW2)
            self.model = Model(self.bench, self.images)
        except BaseException:
            self.stack.close()
            raise

    # Documents.

    @rule(guest=st.sampled_from(GUESTS), one=disks, other=st.none() | disks, rest=rests)
    def push(self, guest: str, one: Wanted, other: Wanted | None, rest: bool) -> None:
        if self._over(f"push {guest} {one} {other}"):
            return
        wanted = {target: want for target, want in zip(TARGETS, (one, other), strict=True) if want}
        for target in TARGETS:
            key = DiskKey(guest, target)
            self.model.keys.add(key)
            self.model.wanted.pop(key, None)
            if target in wanted:
                self.model.wanted[key] = wanted[target]
        elements = [want.element(target, self.images) for target, want in wanted.items()]
        self.bench.push(guest, domain(guest, *elements), generation=str(self._next_generation(guest)))
        self._rest(rest)

    @rule(guest=st.sampled_from(GUESTS), rest=rests)
    def absent(self, guest: str, rest: bool) -> None:
        if self._over(f"absent {guest}"):
            return
        for target in TARGETS:
            self.model.wanted.pop(DiskKey(guest, target), None)
        self.bench.absent(guest, self._next_generation(guest))
        self._rest(rest)

    # The agent.

    @rule(number=st.sampled_from([signal.SIGTERM, signal.SIGKILL]), rest=rests)
    def restart(self, number: signal.Signals, rest: bool) -> None:
        if self._over(f"restart {number.name}"):
            return
        before = self._as_wanted() if rest else {}
        self.bench.restart(number)
        self._rest(rest)
        after = self.model.look().devices
        assert {disk: after[disk].diskseq for disk in before} == before, f"devices were made anew: {self._story()}"

    def _as_wanted(self) -> dict[str, int | None]:
        self._rest()
        seen = self.model.look()
        fitting = {key: device for key in self.model.keys if (device := self.model.device(key, seen))}
        return {disk_id(key): device.diskseq for key, device in fitting.items() if self.model.fits(key, device)}

    # Users of the disks.

    @rule(key=keys, rest=rests)
    def hold(self, key: DiskKey, rest: bool) -> None:
        if key in self.model.holders or self._over(f"hold {key}"):
            return
        try:
            fd = os.open(self.bench.stable(*_names(key)), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # it is not there, or just going
        self.stack.callback(_close, fd)
        device = self.model.device(key, self.model.look())
        if device is None or Path(device.path).stat().st_rdev != os.fstat(fd).st_rdev or device.dead:
            _close(fd)
        else:
            self.model.holders[key] = Holder(fd, device)
        self._rest(rest)

    @rule(key=keys, rest=rests)
    def let_go(self, key: DiskKey, rest: bool) -> None:
        if key not in self.model.holders or self._over(f"let go {key}"):
            return
        _close(self.model.holders.pop(key).fd)
        self._rest(rest)

    @rule(key=keys, indices=st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
    def write(self, key: DiskKey, indices: list[int]) -> None:
        want = self.model.wanted.get(key)
        if want is None or want.read_only or self._over(f"write {key}"):
            return
        self._rest()
        if not self.model.fits(key, self.model.device(key, self.model.look())):
            return
        fd = os.open(self.bench.stable(*_names(key)), os.O_RDWR | os.O_CLOEXEC)
        try:
            for index in indices:
                self.images.write(fd, self.images.content(want.image), index)
        finally:
            os.close(fd)

    # Images.

    @rule(image=raw_images, rest=rests)
    def grow(self, image: str, rest: bool) -> None:
        if not self._over(f"grow {image}") and self.images.grow(image):
            self._rest(rest)

    @rule(image=images, rest=rests)
    def replace(self, image: str, rest: bool) -> None:
        if self._over(f"replace {image}"):
            return
        self.images.put_in_place(image)
        self._rest(rest)

    # Meddlers.

    @rule(key=keys, rest=rests)
    def detach_behind_its_back(self, key: DiskKey, rest: bool) -> None:
        if self._over(f"losetup -d {key}"):
            return
        device = self._resting_device(key)
        if device is None or device.dead:
            return
        subprocess.run(["losetup", "-d", device.path], check=False, capture_output=True)
        self._rest(rest)

    @rule(key=keys, number=st.sampled_from([signal.SIGKILL, signal.SIGTERM]), rest=rests)
    def kill_tap(self, key: DiskKey, number: signal.Signals, rest: bool) -> None:
        if self.kills[key] == crashes.MOST - 1 or self._over(f"kill tap {key} {number.name}"):
            return
        device = self._resting_device(key)
        if device is None or (server := device.server) is None:
            return
        self.kills[key] += 1
        os.kill(server, number)  # one that ends in order takes its mount along
        self.bench.until(lambda: server not in self.bench.servers())
        if holder := self.model.holders.get(key):
            holder.dead = True
        self._rest(rest)

    @rule(image=images, rest=rests)
    def attach_foreign(self, image: str, rest: bool) -> None:
        if image in self.model.foreign or self._over(f"foreign losetup {image}"):
            return
        identity = self.images.identity(image)
        command = ["losetup", "-f", "--show", str(self.images.path(image))]
        made = subprocess.run(command, check=False, capture_output=True, text=True)
        if made.returncode == 0:  # somebody was quicker to take the number
            device = made.stdout.strip()
            self.stack.callback(self._detach_foreign, image, device)
            self.model.foreign[image] = (device, identity)
        self._rest(rest)

    @rule(image=images, rest=rests)
    def detach_foreign(self, image: str, rest: bool) -> None:
        if image not in self.model.foreign or self._over(f"foreign losetup -d {image}"):
            return
        self._detach_foreign(image, self.model.foreign[image][0])
        self._rest(rest)

    def _detach_foreign(self, image: str, device: str) -> None:
        if self.model.foreign.get(image, ("",))[0] == device:
            del self.model.foreign[image]
            subprocess.run(["losetup", "-d", device], check=True, capture_output=True)

    def teardown(self) -> None:
        """Everybody lets go, every guest goes, and what was written is looked for in the images."""
        with self.stack:
            self._rest()
            for holder in self.model.holders.values():
                _close(holder.fd)
            self.model.holders.clear()
            for image, (device, _) in list(self.model.foreign.items()):
                self._detach_foreign(image, device)
            self._rest()
            self.model.wanted.clear()
            for guest in self.model.generations:
                self.bench.absent(guest, self._next_generation(guest))
            self._rest()
            self.bench.assert_clean()
            self.images.check()
            assert not [line for line in self.bench.log_lines() if "exception" in line]

    # How it goes on.

    def _over(self, what: str) -> bool:
        if time.monotonic() > self.deadline:
            return True
        Machine.happened += 1
        self.history.append(what)
        return False

    def _rest(self, rest: bool = True) -> None:
        """Wait until all is as it should be."""
        deadline = time.monotonic() + PATIENCE
        while rest and (wrong := self.model.wrong()):
            assert time.monotonic() < deadline, f"{wrong}\n{self._story()}"
            time.sleep(0.02)

    def _resting_device(self, key: DiskKey) -> Device | None:
        self._rest()
        return self.model.device(key, self.model.look())

    def _story(self) -> str:
        return "\n".join(["what happened:", *self.history, "the log:", self.bench.log.read_text()[-4000:]])

    def _next_generation(self, guest: str) -> int:
        self.model.generations[guest] = self.model.generations.get(guest, 0) + 1
        return self.model.generations[guest]


def _names(key: DiskKey) -> tuple[str, str]:
    return key.guest, key.target


def _close(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)
