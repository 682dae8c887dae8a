"""A Debian with its own kernel under qemu's emulation: what this host's kernel lacks is tested there.

The root file system is the one that `deploy/lib/make-root vm` makes; it stays as it is. A tar with the checkout and
the Python packages of this run is the second disk, a shell script the third. Out come the lines on the serial console.
"""

import re
import shutil
import subprocess
import sysconfig
import tarfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
BOOT_SECONDS = 840
"""Until a machine counts as stuck. It takes a minute or two to do its work, on two slow processors some more."""

_LEFT_OUT = re.compile(r"/(?:atheris|mypy|mypyc|ruff|pip|setuptools|hatchling)(?:[/.-]|$)")

# The only program besides the kernel: no service manager has to come up first. It is process 1, and with its end the
# machine would stop in a panic.
_SCRIPT = """\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CI=1
export PYTHONPATH=/opt/in/checkout:/opt/in/packages
exec >/dev/ttyS0 2>&1 </dev/null
mkdir -p /opt/in /dev/shm && mount -t tmpfs tmpfs /dev/shm
tar -xf /dev/vdb -C /opt/in
python3 -c 'import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh", b"lo", 0x49))'
modprobe nbd max_part=0
modprobe loop
modprobe fuse
cd /opt/in/checkout
{command}
echo "VM-END rc=$?"
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


def boot(root: Path, work: Path, command: str) -> tuple[int, str]:
    """Boot, carry out a shell command in the checkout and switch off.

    Args:
        root: What `make-root vm` has made.
        work: A folder for the machine's own files.
        command: Its output is the machine's.

    Returns:
        The command's exit status and all that was printed.
    """
    content, script, console = work / "in.tar", work / "script", work / "console"
    _pack(content)
    text = _SCRIPT.format(command=command)
    script.write_text(text + "\n" * (-len(text) % 512))  # a disk consists of sectors
    disks = [f"file={root}/root.ext4,format=raw,if=virtio,snapshot=on,cache=unsafe"]
    disks += [f"file={file},format=raw,if=virtio,readonly=on" for file in (content, script)]
    kernel = "root=/dev/vda rw console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on"
    # Linux patches its own code at boot: with two processors QEMU 7.2 sometimes loses that race, and what of the
    # newest processors it can't emulate in full is left out.
    subprocess.run(
        [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,-cx16,-la57", "-smp", "1", "-m", "2048"),
            *("-nodefaults", "-no-reboot", "-display", "none"),
            *("-kernel", root / "vmlinuz", "-initrd", root / "initrd", "-append", f"{kernel} init=/bin/sh -- /dev/vdc"),
            *(word for disk in disks for word in ("-drive", disk)),
            *("-object", "rng-random,filename=/dev/urandom,id=r0", "-device", "virtio-rng-pci,rng=r0"),
            *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
        ],
        check=True,
        timeout=BOOT_SECONDS,
    )
    text = console.read_text(errors="replace").replace("\r", "")
    ended = re.findall(r"^VM-END rc=(\d+)$", text, re.MULTILINE)
    return (int(ended[-1]) if ended else -1), text


def missing() -> str | None:
    """What this machine lacks to boot another."""
    return None if shutil.which("qemu-system-x86_64") else "qemu-system-x86_64; run deploy/test --vm once"


def _pack(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for part in ("agent", "reconcilers", "tests", "deploy", "pyproject.toml"):
            tar.add(CHECKOUT / part, f"checkout/{part}", filter=_wanted)
        tar.add(sysconfig.get_path("purelib"), "packages", filter=_wanted)


def _wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if _LEFT_OUT.search(f"/{info.name}") else info
