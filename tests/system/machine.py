"""A booted Debian with a real systemd as PID 1, in systemd-nspawn over an overlay of the root that deploy/ makes.

It has a network of its own with nothing but loopback, so its broker's port is nobody else's. Loop devices are the
host's: what is left of them is taken down in the end.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reconcilers.loop import control, minors
from reconcilers.tag import instance_id
from tests.workbench import domain

FLEET = "system"
RUNTIME = "/run/tapster"
IMAGES = "/var/lib/tapster/images"
CHECKOUT = Path(__file__).parents[2]
CHECKOUT_INSIDE = "/mnt/checkout"
SETTINGS = """\
host = "{name}"
fleet = "system"
[controller]
retry_min = 0.1
retry_max = 1
"""
PATIENCE = 60.0
"""Seconds until what should come true counts as failed; long, since a busy machine is no defect."""

REBOOT_STATUS = 133
"""systemd-nspawn's exit code when the system in it has asked for a reboot and --keep-unit left that to us."""


class Machine:
    """One booted system. Make it with `booted`."""

    def __init__(self, layers: Sequence[Path], folder: Path, upper: Path, options: Sequence[str] = ()) -> None:
        """Args: layers: root file systems, the uppermost first; upper: takes what it writes; options: of nspawn."""
        self.name = f"tapster-{os.getpid()}-{folder.name[-8:].lower().replace('_', '-').strip('-')}"
        self._layers = layers
        self._folder = folder
        self._upper = upper
        self._options = options
        self._work = upper.with_name("work")  # on the same file system, as the kernel wants it
        self.root = folder / "root"
        self._minors = set[int]()
        self._nspawn: subprocess.Popen[bytes] | None = None

    # Power.

    def mount(self) -> None:
        """Lay a writable layer over the others."""
        for part in (self._upper, self._work, self.root):
            part.mkdir()
        options = f"lowerdir={':'.join(map(str, self._layers))},upperdir={self._upper},workdir={self._work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, self.root], check=True)

    def boot(self) -> None:
        """Switch on and wait until systemd has started all that it is to start."""
        console = (self._folder / "console").open("ab")
        self._nspawn = subprocess.Popen(
            [
                "systemd-nspawn", "--boot", "--quiet", f"--directory={self.root}", f"--machine={self.name}",
                "--register=no", "--keep-unit", "--kill-signal=SIGRTMIN+3", "--console=pipe", "--hostname=tapster-test",
                "--private-network", "--capability=all", "--bind=/dev/fuse", "--bind=/dev/loop-control",
                f"--bind-ro={CHECKOUT}:{CHECKOUT_INSIDE}", *self._options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            start_new_session=True,
        )  # fmt: skip
        console.close()
        self.until(lambda: self._state() in {"running", "degraded"}, "it has booted")

    def _state(self) -> str:
        return self.run("systemctl", "is-system-running", check=False).stdout.strip() if self._leader() else ""

    def power_off(self) -> None:
        """Shut down in order, by force if it does not."""
        if self._nspawn is None:
            return
        self._remember_loops()
        self._nspawn.send_signal(signal.SIGTERM)
        try:
            self._nspawn.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.pull_the_plug()
        self._nspawn = None

    def pull_the_plug(self) -> None:
        """Every process ends at once, as when the power fails."""
        assert self._nspawn is not None
        self._remember_loops()
        if leader := self._leader():
            os.kill(leader, signal.SIGKILL)
        self._nspawn.wait(PATIENCE)
        self._nspawn = None

    def reboot(self) -> None:
        """Restart in order. The kernel is the host's and goes on, so loop devices are taken down as it would."""
        assert self._nspawn is not None
        self._remember_loops()
        self.run("systemctl", "reboot", check=False)
        assert self._nspawn.wait(PATIENCE) == REBOOT_STATUS
        self.detach_loops()
        self.boot()

    def close(self) -> None:
        """End everything and leave nothing on the host."""
        self.power_off()
        self.detach_loops()
        subprocess.run(["umount", "--lazy", self.root], check=True)
        shutil.rmtree(self._folder)

    def detach_loops(self) -> None:
        """Take down the loop devices that the machine has made."""
        ours = instance_id(FLEET, self.name, RUNTIME)
        for minor in minors.bound():
            device = control.describe(minor)
            tagged = device and device.tag and device.tag.instance == ours
            # Over the export of a server that has ended no tag can be read any more.
            if device and (tagged or (device.error and minor in self._minors)):
                self.until(lambda device=device: control.try_detach(device), f"{device.path} is let go")  # type: ignore[misc]

    def _remember_loops(self) -> None:
        if self._leader():
            links = self.shell("readlink /run/tapster/disks/*/* || true").split()
            self._minors |= {int(link.removeprefix("/dev/loop")) for link in links if link.startswith("/dev/loop")}

    # Tapster.

    def configure(self, more: str = "") -> None:
        """Write the agent's settings: this machine's name, so that its loop devices are told from others'."""
        self.write("/etc/tapster/tapster.toml", SETTINGS.format(name=self.name) + more)

    def install(self, package: Path) -> None:
        """What an operator types: apt install ./tapster_….deb. Nothing is fetched, since there is no network."""
        shutil.copy(package, self.root / "root" / package.name)
        apt = "DEBIAN_FRONTEND=noninteractive apt-get -q -y --allow-downgrades -o Dpkg::Options::=--force-confold"
        self.shell(f"{apt} install /root/{package.name}")

    def push(self, guest: str, *disks: str, wait: bool = True) -> None:
        """Publish a domain with these `<disk>` elements, as an operator does, and wait until all is up."""
        self.write(f"/root/{guest}.xml", domain(guest, *disks))
        self.run("tapster", "push", *(["--wait"] if wait else []), f"/root/{guest}.xml")

    def disks(self) -> dict[str, dict[str, Any]]:
        """The status of each disk by guest/target, as the bus has it."""
        guests = json.loads(self.run("tapster", "status", "--output=json", check=False).stdout or "[]")
        return {f"{guest['guest']}/{disk['target']}": disk for guest in guests for disk in guest["disks"]}

    def image(self, name: str, size: str = "64M", fmt: str = "raw") -> Path:
        """Make an image; returns its path inside."""
        self.run("qemu-img", "create", "-q", "-f", fmt, f"{IMAGES}/{name}", size)
        return Path(IMAGES) / name

    # Commands.

    def run(self, *words: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program inside and wait for its end."""
        done = subprocess.run(
            [*self.entrance(), *words], input=stdin, capture_output=True, text=True, timeout=3 * PATIENCE, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a program inside. The caller ends it."""
        return subprocess.Popen(
            [*self.entrance(), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def shell(self, script: str, *, check: bool = True) -> str:
        """Run lines of shell inside; returns what they print."""
        return self.run("sh", "-euc", script, check=check).stdout

    def entrance(self) -> list[str]:
        """What runs a command inside when it is put before it."""
        leader = self._leader()
        assert leader, "the machine is off"
        names = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd")
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "TERM=dumb"]
        return ["nsenter", f"--target={leader}", *names, "--", *clean]

    def _leader(self) -> int | None:
        """The process that is PID 1 inside, once it is systemd."""
        if self._nspawn is None or self._nspawn.poll() is not None:
            return None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        for child in children:
            status = Path(f"/proc/{child}/status").read_text()
            if "\nNSpid:" in status and status.partition("NSpid:")[2].split("\n")[0].split()[-1] == "1":
                return int(child)
        return None

    # What is so.

    def until(self, holds: Callable[[], Any], what: str) -> None:
        """Wait until something holds; fail with the journal's end if it never does."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"it never came true that {what}\n{self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        if self._leader():
            return self.run("journalctl", "-n", "80", "--no-pager", check=False).stdout
        return (self._folder / "console").read_text(errors="replace")[-4000:]

    def is_active(self, unit: str) -> bool:
        """Whether a unit is active, a service after its READY and not while it reloads."""
        return self.show(unit, "ActiveState") == {"ActiveState": "active"}

    def in_step(self) -> None:
        """Wait until the agent that runs now has heard all of the bus and said how its disks are."""
        pid = self.show("tapster.service", "MainPID")["MainPID"]
        heard = ("journalctl", "--boot", f"_PID={pid}", "--output=cat", "--no-pager")
        self.until(lambda: "everything retained has arrived" in self.run(*heard).stdout, "the agent is in step")

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, as systemd has them."""
        text = self.run("systemctl", "show", f"--property={','.join(properties)}", unit).stdout
        return dict(line.split("=", 1) for line in text.splitlines())

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """A unit's journal entries of this boot, with all fields."""
        text = self.run("journalctl", "--boot", "--unit", unit, "--output=json", "--all", "--no-pager").stdout
        return [json.loads(line) for line in text.splitlines()]

    def write(self, path: str, text: str) -> None:
        """Write a file inside, also while it is off."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@contextmanager
def booted(layers: Sequence[Path], upper: Path | None = None, options: Sequence[str] = ()) -> Iterator[Machine]:
    """A running system over these layers, the uppermost first. Nothing of it is left but what `upper` takes."""
    folder = Path(tempfile.mkdtemp(prefix="tapster-machine-"))
    machine = Machine(layers, folder, upper or folder / "upper", options)
    machine.mount()
    try:
        if (machine.root / "etc/tapster").is_dir():
            machine.configure()
        machine.boot()
        yield machine
    finally:
        machine.close()
