"""What a definition's path may lead to by mistake: refused with a reason, tried again, and other disks go on."""

import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.images.makers import vhd_dynamic, vhd_fixed, vhd_footer
from tests.workbench import Bench, domain, loop_disk, tap_disk

SECTORS = 64 * 512


def refused(host: Bench, guest: str, target: str, reason: str) -> dict[str, Any]:
    host.until(lambda: (host.disk(guest, target).get("error") or {}).get("reason") == reason)
    disk = host.disk(guest, target)
    assert disk["phase"] == "Refused"
    assert disk["device_path"] is None
    assert not host.stable(guest, target).is_symlink()
    return disk


def directory(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def character_device(path: Path) -> None:
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))


def block_device(path: Path) -> None:
    os.mknod(path, 0o600 | 0o060000, os.makedev(250, 99))


def loop_of_links(path: Path) -> None:
    path.symlink_to(path)


def nothing(path: Path) -> None:
    assert not path.exists()


def empty(path: Path) -> None:
    path.touch()


def crumb(path: Path) -> None:
    path.write_bytes(b"x" * 511)


THINGS: list[tuple[Callable[[Path], None], str, str]] = [
    (nothing, "ImageMissing", "create the image"),
    (empty, "ImageEmpty", "no bytes"),
    (crumb, "ImageTooSmall", "511 bytes"),
    (directory, "NotAnImage", "a directory"),
    (fifo, "NotAnImage", "a FIFO"),
    (unix_socket, "NotAnImage", "a socket"),
    (character_device, "NotAnImage", "a character device"),
    (block_device, "NotAnImage", "a block device"),
    (loop_of_links, "OutsidePools", "symbolic link"),
]


@pytest.mark.parametrize(("make", "reason", "words"), THINGS, ids=[make.__name__ for make, *_ in THINGS])
def test_what_is_no_image_is_refused_and_comes_up_when_it_is_one(
    host: Bench, make: Callable[[Path], None], reason: str, words: str
) -> None:
    guest = f"no-{make.__name__}"
    path, other = host.images / guest, host.image(f"{guest}.good")
    make(path)
    host.push_disks(guest, loop_disk("vda", path), tap_disk("vdb", path), loop_disk("vdc", other))
    host.until_phase(guest, "vdc", "Up")
    for target in ("vda", "vdb"):
        disk = refused(host, guest, target, reason)
        assert words in disk["error"]["message"]
        assert str(path) in disk["error"]["message"]
        assert disk["next_retry"]
    assert host.condition(guest, "Ready")["reason"] == reason
    assert host.condition(guest, "Accepted")["status"] == "True"
    image = host.image(f"{guest}.new")
    host.push_disks(guest, loop_disk("vda", path), loop_disk("vdc", other))
    host.until(lambda: not host.disk(guest, "vdb"))
    if path.is_dir():
        path.rmdir()
    image.replace(path)
    host.until_guest(guest, "Up")


@pytest.mark.parametrize("fmt", ["qcow", "qcow2", "vhd", "vmdk", "vhdx", "vdi", "qed"])
def test_an_image_of_another_format_is_refused(host: Bench, fmt: str) -> None:
    guest, image = f"format-{fmt}", host.image(f"format-{fmt}.img")
    host.push_disks(guest, tap_disk("vda", image, fmt))
    disk = refused(host, guest, "vda", "FormatMismatch")
    assert f"declared {fmt}" in disk["error"]["message"]
    assert not list(host.runtime.glob("taps/*"))


def test_a_raw_disk_over_a_qcow2_image_is_served_as_raw_and_says_so(host: Bench) -> None:
    image = host.formatted("hidden.qcow2", "qcow2")
    content = image.read_bytes()
    for guest, disk in (("raw-loop", loop_disk("vda", image)), ("raw-tap", tap_disk("vda", image))):
        host.push_disks(guest, disk)
        up = host.until_phase(guest, "vda", "Up")
        assert up["error"]["reason"] == "FormatMismatch"
        assert "begins like qcow2" in up["error"]["message"]
        assert host.stable(guest, "vda").read_bytes()[:SECTORS] == content[:SECTORS]
        host.absent(guest)
        host.until_phase(guest, "vda", "Down")


@pytest.mark.parametrize("fmt", ["qcow2", "qcow", "vmdk", "qed"])
def test_an_image_that_names_a_backing_file_is_refused(host: Bench, fmt: str) -> None:
    base, image = host.formatted(f"base.{fmt}", fmt), host.images / f"overlay.{fmt}"
    subprocess.run(["qemu-img", "create", "-q", "-f", fmt, "-b", base, "-F", fmt, image], check=True)
    host.push_disks(f"overlay-{fmt}", tap_disk("vda", image, fmt))
    disk = refused(host, f"overlay-{fmt}", "vda", "BackingUndeclared")
    assert "flatten" in disk["error"]["message"]


def test_an_image_with_its_data_in_another_file_is_refused(host: Bench) -> None:
    image, data = host.images / "thin.qcow2", host.images / "thick.raw"
    options = f"data_file={data},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, "1M"], check=True)
    host.push_disks("data-file", tap_disk("vda", image, "qcow2"))
    assert "another file" in refused(host, "data-file", "vda", "BackingUndeclared")["error"]["message"]


def test_a_header_that_lies_is_refused_before_any_server_sees_it(host: Bench) -> None:
    image = host.image("liar.qcow2")
    with image.open("r+b") as file:
        file.write(b"QFI\xfb\x00\x00\x00\x03" + b"\0" * 100)
    host.push_disks("liar", tap_disk("vda", image, "qcow2"))
    assert "2^0" in refused(host, "liar", "vda", "ImageDamaged")["error"]["message"]
    assert not list(host.runtime.glob("taps/*"))


def test_what_only_the_server_can_see_is_its_to_refuse_and_leaves_nothing(host: Bench) -> None:
    image = host.formatted("snapshots.qcow2", "qcow2")
    with image.open("r+b") as file:
        file.seek(60)
        file.write(struct.pack(">IQ", 1, 1 << 18))
        file.seek((1 << 18) + 36)
        file.write(b"\xff" * 4096)  # the one snapshot says that 4 GiB more are known of it
    host.push_disks("snapshots", tap_disk("vda", image, "qcow2"))
    disk = host.until_phase("snapshots", "vda", "Failed")
    assert disk["error"]["reason"] == "ServerFailed"
    assert "qemu-storage-daemon" in disk["error"]["message"]
    assert disk["attempts"] >= 1
    host.absent("snapshots")
    host.until_guest("snapshots", "Down")


def test_a_header_planted_in_a_fixed_vhd_changes_nothing(host: Bench) -> None:
    content = vhd_dynamic(host.images / "planted", size=1 << 30).read_bytes().ljust(4 << 20, b"\0")
    image = vhd_fixed(host.images / "fixed.vhd", content)
    host.push_disks("planted", tap_disk("vda", image, "vhd"))
    up = host.until_phase("planted", "vda", "Up")
    assert (up["size_bytes"], up["effective"]["format"]) == (4 << 20, "vhd")
    with host.stable("planted", "vda").open("r+b", buffering=0) as device:
        assert device.read(len(content) + 1) == content
        device.seek(0)
        device.write(b"written" * 1024)
        os.fsync(device.fileno())
    host.absent("planted")
    host.until_guest("planted", "Down")
    assert image.read_bytes() == b"written" * 1024 + content[7168:] + vhd_footer(size=4 << 20)


@pytest.fixture
def immutable(host: Bench) -> Iterator[Path]:
    image = host.image("immutable.img")
    if subprocess.run(["chattr", "+i", image], check=False, capture_output=True).returncode:
        pytest.skip("this file system has no immutable files")
    yield image
    subprocess.run(["chattr", "-i", image], check=True)


def test_an_image_that_may_not_be_written_is_refused_and_never_made_read_only(host: Bench, immutable: Path) -> None:
    host.push_disks("immutable", loop_disk("vda", immutable), tap_disk("vdb", immutable))
    for target in ("vda", "vdb"):
        disk = refused(host, "immutable", target, "ReadOnlySource")
        assert "add <readonly/>" in disk["error"]["message"]
    host.push_disks("immutable", loop_disk("vda", immutable, "<readonly/>"))
    assert host.until_phase("immutable", "vda", "Up")["read_only"] is True
    host.absent("immutable")
    host.until_guest("immutable", "Down")


@pytest.fixture
def read_only_mount(host: Bench) -> Iterator[Path]:
    folder = host.elsewhere
    folder.mkdir()
    image = host.image("on-read-only.img")
    subprocess.run(["mount", "--bind", host.images, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield folder / image.name
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_writable_disk_on_a_read_only_file_system_is_refused(host: Bench, read_only_mount: Path) -> None:
    host.push_disks("ro-fs", loop_disk("vda", read_only_mount))
    assert "Read-only file system" in refused(host, "ro-fs", "vda", "ReadOnlySource")["error"]["message"]
    host.push_disks("ro-fs", loop_disk("vda", read_only_mount, "<readonly/>"))
    host.until_phase("ro-fs", "vda", "Up")
    # The same file under another name and mount is the same image.
    host.push_disks("ro-fs2", loop_disk("vda", host.images / "on-read-only.img"))
    assert "ro-fs/vda" in refused(host, "ro-fs2", "vda", "SourceInUse")["error"]["message"]
    for guest in ("ro-fs2", "ro-fs"):
        host.absent(guest)
        host.until_guest(guest, "Down")


def test_a_duplicate_target_is_refused_and_the_other_disks_go_on(host: Bench) -> None:
    first, other = host.image("dup-a.img"), host.image("dup-c.img")
    host.push_disks("dup", loop_disk("vda", first))
    up = host.until_phase("dup", "vda", "Up")
    twice = [loop_disk("vda", first), loop_disk("vda", host.image("dup-b.img"))]
    host.push_disks("dup", *twice, loop_disk("vdb", other))
    host.until_phase("dup", "vdb", "Up")
    disk = host.until_phase("dup", "vda", "Refused")
    assert disk["error"]["reason"] == "DuplicateTarget"
    assert "line 1" in disk["error"]["message"]
    assert disk["diskseq"] == up["diskseq"]
    host.push_disks("dup", loop_disk("vda", first), loop_disk("vdb", other))
    assert host.until_phase("dup", "vda", "Up")["diskseq"] == up["diskseq"]


def test_a_refused_disk_beside_a_good_one_has_its_line(host: Bench) -> None:
    bad = "\n\n<disk type='network'><source protocol='nbd' name='x'/><target dev='vdb'/></disk>"
    host.push("mixed", domain("mixed", loop_disk("vda", host.image("mixed.img")), bad))
    host.until_phase("mixed", "vda", "Up")
    disk = host.until_phase("mixed", "vdb", "Refused")
    assert disk["error"]["reason"] == "UnsupportedSource"
    assert disk["error"]["message"].startswith("line 3: ")
    assert host.statuses["mixed"]["phase"] == "Refused"


def test_optional_media_may_be_missing(host: Bench) -> None:
    path = host.images / "later.iso"
    source = f"<source file='{path}' startupPolicy='optional'/>"
    host.push_disks("optional", f"<disk type='file' device='cdrom'>{source}<target dev='hda'/></disk>")
    host.until_phase("optional", "hda", "Down")
    host.image("later.iso")
    host.resync()
    assert host.until_phase("optional", "hda", "Up")["read_only"] is True


def test_a_lun_over_a_file_is_refused(host: Bench) -> None:
    disk = loop_disk("sda", host.image("lun.img")).replace("<disk ", "<disk device='lun' ")
    host.push_disks("lun", disk)
    host.until(lambda: host.disk("lun", "sda").get("phase") == "Refused")
    assert host.disk("lun", "sda")["error"]["reason"] in {"NotALun", "UnsupportedFeature"}
