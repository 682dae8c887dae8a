"""A guest that QEMU boots with what `tapster render` prints reads and writes its disk by the stable path.

The guest is a boot sector: it reads its second sector, says it on the serial line, and writes it to the third.
"""

import shlex
import shutil
import subprocess

import pytest

from tests.running.test_render import render
from tests.workbench import Bench, loop_disk, tap_disk

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


@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")
@pytest.mark.parametrize("disk", [loop_disk, tap_disk])
def test_a_guest_reads_and_writes_its_disk(host: Bench, disk: object) -> None:
    image = host.image("guest.img", 1 << 20)
    boot = GUEST.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
    with image.open("r+b") as file:
        file.write(boot + WORDS.ljust(SECTOR, b"\0"))
    host.push_disks("booted", disk("vda", image))  # type: ignore[operator]
    host.until_guest("booted", "Up")

    words = shlex.split(render(host, "--to", "qemu", "--guest", "booted").stdout.replace("\\\n", " "))
    assert any(str(host.stable("booted", "vda")) in word for word in words)
    machine = [QEMU, "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    done = subprocess.run(
        [*machine, "-device", "isa-debug-exit,iobase=0xf4", *words], capture_output=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (SWITCHED_OFF, WORDS), done.stderr
    with image.open("rb") as file:
        file.seek(2 * SECTOR)
        assert file.read(len(WORDS)) == WORDS
