"""A Debian with its own kernel under qemu's emulation: what this host's kernel lacks, or nspawn does not enforce.

Its disk is made anew from the layers that nspawn boots too, with the checkout and the Python packages of this run in
it. Once it has booted, a unit runs a command there; out come the lines on the serial console.
"""

import gzip
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.system.machine import CHECKOUT

BOOT_SECONDS = 840
"""Until a machine counts as stuck. It takes some minutes to do its work, on two slow processors more."""

_LEFT_OUT = shutil.ignore_patterns(
    "atheris*", "mypy*", "ruff*", "pip*", "setuptools*", "hatchling*", "__editable__*", "*.pth", ".cache"
)
_PARTS = ("agent", "reconcilers", "tests", "deploy", "systemd")
_QUIETLY = "panic=-1 quiet mitigations=off systemd.show_status=no"

# The default target is the graphical one, so the command begins when all is up that starts by itself.
_UNIT = """\
[Unit]
Description=What the machine is for
After=multi-user.target

[Service]
Type=oneshot
WorkingDirectory=/opt/checkout
Environment=HOME=/root CI=1 PYTHONPATH=/opt/checkout:/opt/packages
StandardOutput=tty
StandardError=tty
TTYPath=/dev/{console}
ExecStart={command}
ExecStopPost=/bin/sh -c 'echo "VM-END rc=$EXIT_STATUS" >/dev/{console}; systemctl poweroff --force --force'
"""


@dataclass(frozen=True)
class Kind:
    """A kind of machine: what Linux calls its serial line there, and what starts it.

    `hardware` is given the folder with the kernel, the disk and a folder for the machine's own files, and answers with
    qemu's arguments.
    """

    console: str
    hardware: Callable[[Path, Path, Path], list[str | Path]]


def _pc(boot: Path, disk: Path, work: Path) -> list[str | Path]:
    (kernel,), (initrd,) = boot.glob("vmlinuz-*"), boot.glob("initrd.img-*")
    # Linux patches its own code at boot: with two processors QEMU 7.2 sometimes loses that race, and what of the
    # newest processors it can't emulate in full is left out.
    return [
        *("-cpu", "max,-cx16,-la57", "-smp", "1", "-m", "2048", "-kernel", kernel, "-initrd", initrd),
        *("-append", f"root=/dev/vda rw console=ttyS0 nokaslr random.trust_cpu=on {_QUIETLY}"),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
        *("-object", "rng-random,filename=/dev/urandom,id=r0", "-device", "virtio-rng-pci,rng=r0"),
    ]


def _dom0(boot: Path, disk: Path, work: Path) -> list[str | Path]:
    """Xen is the kernel here; Linux and its initrd are modules of its."""
    (packed,), (kernel,) = boot.glob("xen-*-amd64.gz"), boot.glob("vmlinuz-*")
    initrd = boot / kernel.name.replace("vmlinuz", "initrd.img")
    xen = work / "xen"  # qemu starts none that is packed
    xen.write_bytes(gzip.decompress(packed.read_bytes()))
    return [
        *("-cpu", "qemu64", "-smp", "1", "-m", "3072", "-kernel", xen),
        *("-append", "console=com1 com1=115200,8n1 loglvl=warning guest_loglvl=warning dom0_mem=2G,max:2G"),
        *("-initrd", f"{kernel} root=/dev/sda rw console=hvc0 {_QUIETLY},{initrd}"),
        *("-drive", f"file={disk},format=raw,if=ide,cache=unsafe"),
    ]


PC = Kind("ttyS0", _pc)
DOM0 = Kind("hvc0", _dom0)


def run(
    layers: Sequence[Path],
    work: Path,
    command: str,
    tell: Callable[[str], None],
    *,
    packages: Sequence[str] = (),
    kind: Kind = PC,
) -> int:
    """Boot, run a command in the checkout and switch off.

    Args:
        layers: Root file systems, the uppermost first; the first one that has a kernel gives it.
        work: A folder for the machine's own files.
        command: As a unit's ExecStart has it.
        tell: Gets each line that the machine prints, at once, and what is done before it does.
        packages: Debian packages that it takes besides.
        kind: The kind of machine.

    Returns:
        The command's exit status, or -1 if it never said so.
    """
    tell("making the machine's disk")
    disk = _make_disk(layers, work, _UNIT.format(command=command, console=kind.console), packages)
    boot = next(layer / "boot" for layer in layers if any(layer.glob("boot/vmlinuz-*")))
    tell("booting it; the first line comes after half a minute or two")
    ended = [
        int(found[1])
        for line in _boot(kind.hardware(boot, disk, work), work / "console", tell)
        if (found := re.search(r"VM-END rc=(\d+)", line))
    ]
    return ended[-1] if ended else -1


def _make_disk(layers: Sequence[Path], work: Path, unit: str, packages: Sequence[str]) -> Path:
    disk = work / "disk"
    with laid_over(layers, work) as root:
        if packages:
            _install(root, packages)
        (root / "etc/tmpfiles.d/loop-nodes.conf").unlink()  # here /dev is the kernel's own
        for part in _PARTS:
            shutil.copytree(CHECKOUT / part, root / "opt/checkout" / part, ignore=_LEFT_OUT)
        shutil.copy(CHECKOUT / "pyproject.toml", root / "opt/checkout")
        shutil.copytree(sysconfig.get_path("purelib"), root / "opt/packages", ignore=_LEFT_OUT)
        subprocess.run([sys.executable, "-m", "compileall", "-q", root / "opt/checkout"], check=True)
        (root / "etc/tapster-test-machine").touch()
        units = root / "etc/systemd/system"
        (units / "tests.service").write_text(unit)
        (units / "graphical.target.wants").mkdir(exist_ok=True)
        (units / "graphical.target.wants/tests.service").symlink_to("../tests.service")
        with disk.open("wb") as file:
            file.truncate(3 << 30)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, disk], check=True)
    return disk


def _install(root: Path, packages: Sequence[str]) -> None:
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    apt = ["chroot", str(root), "apt-get", "-q", "-q"]
    surroundings = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        subprocess.run([*apt, *words], check=True, stdout=subprocess.DEVNULL, env=surroundings)


@contextmanager
def laid_over(layers: Sequence[Path], work: Path) -> Iterator[Path]:
    """A writable layer over the others, as one folder."""
    root, upper, scratch = work / "root", work / "upper", work / "scratch"
    for part in (root, upper, scratch):
        part.mkdir()
    options = f"lowerdir={':'.join(map(str, layers))},upperdir={upper},workdir={scratch}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", root], check=True)


def _boot(hardware: Sequence[str | Path], console: Path, tell: Callable[[str], None]) -> Iterator[str]:
    """Each line on the console until the machine is off."""
    console.touch()
    machine = subprocess.Popen(
        [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-nodefaults", "-no-reboot", "-display", "none"),
            *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console", *hardware),
        ],
        stdin=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + BOOT_SECONDS
    try:
        with console.open(errors="replace", newline="\n") as output:
            line, running = "", True
            while running:
                running = machine.poll() is None
                if time.monotonic() > deadline:
                    raise AssertionError(f"the machine was not done within {BOOT_SECONDS} s")
                while part := output.readline():
                    line += part
                    if line.endswith("\n"):
                        tell(line.rstrip())
                        yield line
                        line = ""
                time.sleep(0.1)
    finally:
        machine.kill()
        machine.wait()


def missing() -> str | None:
    """What this machine lacks to boot another."""
    if platform.machine() != "x86_64":
        return "processor that the emulated one is like"
    return None if shutil.which("qemu-system-x86_64") else "qemu-system-x86_64; run deploy/test --vm once"
