"""A guest that xl starts with what `tapster render` prints reads and writes its disks, and holds them while it runs.

These run in a dom0 of their own, where tests/system/test_xen.py has them run, and are skipped anywhere else.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.real_kernel.conftest import IMAGES, disks_of, push, run, until
from tests.workbench import loop_disk, tap_disk

SECTOR = 512
CONSOLE = Path("/var/log/xen/console/guest-vm1.log")
BLOCK_DRIVER = Path(f"/lib/modules/{platform.release()}/kernel/drivers/block/xen-blkfront.ko")

# PVH takes paging by hardware or by shadow, and the emulated processor gives Xen neither.
CONFIGURATION = """\
name = "vm1"
type = "pv"
memory = 192
kernel = "{kernel}"
ramdisk = "{ramdisk}"
extra = "console=hvc0 quiet"
"""

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
insmod /xen-blkfront.ko
for name in xvda xvdb; do
    until [ -b /dev/$name ]; do usleep 100000; done
    echo "$name reads $(head -n 1 /dev/$name)"
    echo "written by a guest to $name" | dd of=/dev/$name bs=512 seek=1 conv=notrunc,fsync 2>/dev/null
done
echo 'the guest is done'
sleep 100000
"""

pytestmark = [
    pytest.mark.skipif(not Path("/sys/hypervisor/type").exists(), reason="this is no dom0"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def ramdisk(tmp_path: Path) -> Path:
    """A guest's root: a shell, the driver of its disks, and what it does with them."""
    root, file = tmp_path / "root", tmp_path / "ramdisk"
    for folder in ("bin", "proc", "dev"):
        (root / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    shutil.copy(BLOCK_DRIVER, root)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    with file.open("wb") as archive:
        names = "\n".join(str(path.relative_to(root)) for path in root.rglob("*"))
        packing = ["cpio", "--quiet", "--create", "--format=newc"]
        subprocess.run(packing, cwd=root, input=names.encode(), stdout=archive, check=True)
    return file


def sectors(image: Path, fmt: str) -> list[bytes]:
    """The first two sectors of a disk, past every device."""
    raw = image.with_suffix(".copy")
    run("qemu-img", "convert", "-f", fmt, "-O", "raw", image, raw)
    content = raw.read_bytes()
    return [content[:SECTOR].rstrip(b"\0"), content[SECTOR : 2 * SECTOR].rstrip(b"\0")]


def test_a_guest_reads_and_writes_its_disks_and_holds_them(ramdisk: Path, tmp_path: Path) -> None:
    raw, qcow2 = IMAGES / "a.raw", IMAGES / "b.qcow2"
    raw.write_bytes(b"first of vm1\n".ljust(1 << 20, b"\0"))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
    push("vm1", loop_disk("xvda", raw), tap_disk("xvdb", qcow2, "qcow2"))

    configuration = tmp_path / "vm1.cfg"
    kernel = Path(f"/boot/vmlinuz-{platform.release()}")
    disks = run("tapster", "render", "--to", "xl", "--guest", "vm1")
    configuration.write_text(CONFIGURATION.format(kernel=kernel, ramdisk=ramdisk) + disks)
    CONSOLE.unlink(missing_ok=True)
    run("xl", "create", configuration)
    until(lambda: CONSOLE.exists() and "the guest is done" in CONSOLE.read_text(errors="replace"))
    for name in ("xvda", "xvdb"):
        assert f"{name} reads first of vm1" in CONSOLE.read_text(errors="replace")

    run("tapster", "absent", "vm1")
    until(lambda: {disk["phase"] for disk in disks_of("vm1").values()} == {"InUse"})
    run("xl", "destroy", "vm1")
    run("tapster", "absent", "--wait", "vm1")
    for image, fmt, name in ((raw, "raw", "xvda"), (qcow2, "qcow2", "xvdb")):
        assert sectors(image, fmt) == [b"first of vm1\n", f"written by a guest to {name}\n".encode()]
