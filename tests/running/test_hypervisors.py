"""A guest that QEMU or libvirt starts with what `tapster render` prints reads and writes its disk by the stable path.

The guest is a boot sector: it reads its second sector, says it on the serial line, and writes it to the third.
"""

import grp
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.broker import Broker
from tests.running.test_render import render
from tests.running.test_sockets import TAPS as SOCKETS
from tests.workbench import Bench, loop_disk, tap_disk
from tests.workbench import bench as running_bench

QEMU = "qemu-system-x86_64"
WORDS = b"a guest reads its disk\n"
SECTOR = 512
SWITCHED_OFF = 33
"""QEMU's exit code when the guest writes 16 to the debug exit: (16 << 1) | 1."""

GUEST = bytes.fromhex(
    "fc 31c0 8ed8 8ec0"  # cld; ax, ds, es = 0
    "bb007e b80102 b90200 b600 cd13"  # int 13h, ah=2: read sector 2 (they count from 1) to 7e00
    "bb007e b80103 b90300 b600 cd13"  # ah=3: write it to sector 3
    "be007e"  # si = 7e00
    "ac 08c0 7406 baf803 ee ebf5"  # lodsb; until 0: out 3f8, al
    "b010 baf400 ee f4"  # out f4, 16; hlt
)


LIBVIRTD = shutil.which("libvirtd", path=f"{os.environ['PATH']}:/usr/sbin")
LIBVIRTD_SETTINGS = """\
unix_sock_dir = "{folder}"
auth_unix_rw = "none"
unix_sock_group = "root"
log_outputs = "4:stderr"
"""
DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64'>hvm</type></os>
  <devices>{disks}<serial type='file'><source path='{serial}'/></serial></devices>
</domain>
"""

pytestmark = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")


def bootable(host: Bench) -> Path:
    image = host.image("guest.img", 1 << 20)
    boot = GUEST.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
    with image.open("r+b") as file:
        file.write(boot + WORDS.ljust(SECTOR, b"\0"))
    return image


def third_sector(image: Path) -> bytes:
    with image.open("rb") as file:
        file.seek(2 * SECTOR)
        return file.read(len(WORDS))


@contextmanager
def libvirt(folder: Path) -> Iterator[Callable[..., str]]:
    """A libvirtd with its log daemon and no sockets but in this folder; gives its virsh."""
    settings = folder / "libvirtd.conf"
    settings.write_text(LIBVIRTD_SETTINGS.format(folder=folder))
    daemons = [
        subprocess.Popen([str(LIBVIRTD), "--config", settings, "--pid-file", folder / "libvirtd.pid"]),
        subprocess.Popen([str(Path(str(LIBVIRTD)).with_name("virtlogd")), "--pid-file", folder / "virtlogd.pid"]),
    ]

    def virsh(*words: str | Path, check: bool = True) -> str:
        uri = f"qemu:///system?socket={folder}/libvirt-sock"
        done = subprocess.run(["virsh", "--connect", uri, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    try:
        yield virsh
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait()


@pytest.fixture(scope="module")
def socket_host(host_parts: None, broker: Broker) -> Iterator[Bench]:
    """A host whose taps are sockets, which QEMU may use as whoever libvirt has it run."""
    with running_bench(f"{SOCKETS}socket_group = {_libvirts_group()!r}\n", broker=broker) as bench:
        yield bench


def _libvirts_group() -> str:
    return next((each.gr_name for each in grp.getgrall() if each.gr_name == "libvirt-qemu"), "root")


@pytest.mark.skipif(LIBVIRTD is None, reason="libvirtd is not installed")
@pytest.mark.skipif(Path("/run/libvirt/libvirt-sock").exists(), reason="this machine's own libvirtd is left alone")
@pytest.mark.parametrize("fixture", ["host", "socket_host"])
def test_libvirt_starts_a_guest_with_its_disk(request: pytest.FixtureRequest, fixture: str) -> None:
    host: Bench = request.getfixturevalue(fixture)
    image, serial, guest = bootable(host), host.folder / "serial", f"booted-{host.host}"
    host.push_disks(guest, tap_disk("vda", image))
    host.until_guest(guest, "Up")
    disks = render(host, "--to", "libvirt", "--guest", guest).stdout
    definition = host.folder / "domain.xml"
    definition.write_text(DOMAIN.format(name=guest, disks=disks, serial=serial))
    host.folder.chmod(0o711)  # QEMU is libvirt's own user
    with libvirt(host.folder) as virsh:
        host.until(lambda: "running" in virsh("version", "--daemon", check=False).lower())
        virsh("create", definition)
        host.until(lambda: serial.exists() and serial.read_bytes() == WORDS)
        assert str(host.stable(guest, "vda")) in virsh("dumpxml", guest)
        host.absent(guest)
        host.until_phase(guest, "vda", "InUse")
        virsh("destroy", guest)
        host.until_guest(guest, "Down")
    assert third_sector(image) == WORDS


@pytest.mark.parametrize(("fixture", "disk"), [("host", loop_disk), ("host", tap_disk), ("socket_host", tap_disk)])
def test_a_guest_reads_and_writes_its_disk(request: pytest.FixtureRequest, fixture: str, disk: object) -> None:
    host: Bench = request.getfixturevalue(fixture)
    image = bootable(host)
    host.push_disks("booted", disk("vda", image))  # type: ignore[operator]
    host.until_guest("booted", "Up")

    words = shlex.split(render(host, "--to", "qemu", "--guest", "booted").stdout.replace("\\\n", " "))
    assert any(str(host.stable("booted", "vda")) in word for word in words)
    machine = [QEMU, "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    done = subprocess.run(
        [*machine, "-device", "isa-debug-exit,iobase=0xf4", *words], capture_output=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (SWITCHED_OFF, WORDS), done.stderr
    assert third_sector(image) == WORDS
