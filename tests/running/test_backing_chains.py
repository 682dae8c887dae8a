"""Backing chains that definitions declare: data through every layer, shared bases, and what is kept out."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.workbench import Bench, loop_disk, tap_disk

MIB = 1 << 20
QEMU = {"aio": "raw", "vhd": "vpc"}


def make(path: Path, fmt: str, base: Path | None = None, base_fmt: str = "") -> Path:
    on = ["-b", base, "-F", QEMU.get(base_fmt, base_fmt)] if base else []
    size = [] if base else ["8M"]
    words = ["qemu-img", "create", "-q", "-f", QEMU.get(fmt, fmt), *on, path, *size]
    subprocess.run([str(word) for word in words], check=True)
    return path


def fill(path: Path, fmt: str, at: int, byte: int) -> None:
    command = ["qemu-io", "-f", QEMU.get(fmt, fmt), "-c", f"write -P {byte} {at * MIB} 1M", str(path)]
    subprocess.run(command, check=True, capture_output=True)


def chain(*layers: tuple[Path, str]) -> str:
    inner = "<backingStore/>"
    for path, fmt in reversed(layers):
        form = "raw" if fmt == "aio" else fmt
        inner = f"<backingStore type='file'><format type='{form}'/><source file='{path}'/>{inner}</backingStore>"
    return inner


def refused(host: Bench, guest: str, reason: str) -> dict[str, Any]:
    host.until(lambda: (host.disk(guest, "vda").get("error") or {}).get("reason") == reason)
    assert host.disk(guest, "vda")["phase"] == "Refused"
    return host.disk(guest, "vda")


def down(host: Bench, *guests: str) -> None:
    for guest in guests:
        host.absent(guest)
        host.until_guest(guest, "Down")


@pytest.mark.parametrize("bottom", ["aio", "qcow2", "qcow", "qed", "vhd", "vdi", "vhdx"])
@pytest.mark.parametrize("top", ["qcow2", "qcow", "qed"])
def test_data_through_three_layers(host: Bench, top: str, bottom: str) -> None:
    guest = f"three-{top}-{bottom}"
    base = make(host.images / f"{guest}.base", bottom)
    fill(base, bottom, 0, 1)
    fill(base, bottom, 1, 1)
    middle = make(host.images / f"{guest}.middle", "qcow2", base, bottom)
    fill(middle, "qcow2", 1, 2)
    fill(middle, "qcow2", 2, 2)
    overlay = make(host.images / guest, top, middle, "qcow2")
    before = [path.read_bytes() for path in (base, middle)]
    host.push_disks(guest, tap_disk("vda", overlay, top, chain((middle, "qcow2"), (base, bottom))))
    up = host.until_phase(guest, "vda", "Up")
    assert up["backing"] == [{"source": str(middle), "format": "qcow2"}, {"source": str(base), "format": bottom}]
    with host.stable(guest, "vda").open("r+b", buffering=0) as device:
        assert device.read(4 * MIB) == b"\1" * MIB + b"\2" * 2 * MIB + bytes(MIB)
        device.seek(MIB // 2)
        device.write(b"\3" * MIB)
        os.fsync(device.fileno())
    down(host, guest)
    assert [path.read_bytes() for path in (base, middle)] == before
    out = host.images / f"{guest}.out"
    subprocess.run(["qemu-img", "convert", "-f", top, "-O", "raw", overlay, out], check=True)
    expected = b"\1" * (MIB // 2) + b"\3" * MIB + b"\2" * (3 * MIB // 2) + bytes(MIB)
    assert out.read_bytes()[: 4 * MIB] == expected


def test_many_share_a_base_and_nobody_writes_to_it(host: Bench) -> None:
    base = make(host.images / "shared.base", "qcow2")
    fill(base, "qcow2", 0, 7)
    guests = [f"shares-{number}" for number in range(6)]
    for number, guest in enumerate(guests):
        overlay = make(host.images / guest, "qcow2", base, "qcow2")
        host.push_disks(guest, tap_disk("vda", overlay, "qcow2", chain((base, "qcow2"))))
        host.until_phase(guest, "vda", "Up")
        with host.stable(guest, "vda").open("r+b", buffering=0) as device:
            assert device.read(MIB) == b"\7" * MIB
            device.seek(0)
            device.write(bytes([number]) * 4096)
            os.fsync(device.fileno())
    for number, guest in enumerate(guests):
        with host.stable(guest, "vda").open("rb", buffering=0) as device:
            assert device.read(8192) == bytes([number]) * 4096 + b"\7" * 4096
    host.push_disks("writer", tap_disk("vda", base, "qcow2"))
    refused(host, "writer", "SourceInUse")
    host.push_disks("writer", loop_disk("vda", base))
    refused(host, "writer", "SourceInUse")
    written = subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 512", base], check=False, capture_output=True)
    assert b'Failed to get "write" lock' in written.stderr
    host.push_disks("writer", tap_disk("vda", base, "qcow2", "<readonly/>"))
    host.until_phase("writer", "vda", "Up")
    host.restart()
    for guest in guests:
        assert host.until_phase(guest, "vda", "Up")["backing"]
    refused_still = make(host.images / "shared.other", "qcow2", base, "qcow2")
    host.push_disks("late", tap_disk("vda", refused_still, "qcow2", chain((base, "qcow2"))))
    host.until_phase("late", "vda", "Up")
    down(host, "late", "writer", *guests)
    host.push_disks("writer", tap_disk("vda", base, "qcow2"))
    host.until_phase("writer", "vda", "Up")
    down(host, "writer")


@contextmanager
def foreign_writer(path: Path) -> Iterator[None]:
    command = ["losetup", "--show", "-f", str(path)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_a_base_that_somebody_writes_is_refused(host: Bench) -> None:
    base = make(host.images / "written.base", "aio")
    overlay = make(host.images / "written", "qcow2", base, "aio")
    below = chain((base, "aio"))
    with foreign_writer(base):
        host.push_disks("reader", tap_disk("vda", overlay, "qcow2", below))
        assert str(base) in refused(host, "reader", "SourceInUse")["error"]["message"]
    host.until_phase("reader", "vda", "Up")
    down(host, "reader")
    with base.open("r+b"):
        host.push_disks("reader", tap_disk("vda", overlay, "qcow2", below))
        assert str(base) in refused(host, "reader", "SourceInUse")["error"]["message"]
    host.until_phase("reader", "vda", "Up")
    down(host, "reader")
    host.push_disks("owner", loop_disk("vda", base))
    host.until_phase("owner", "vda", "Up")
    host.push_disks("reader", tap_disk("vda", overlay, "qcow2", below))
    assert "owner/vda" in refused(host, "reader", "SourceInUse")["error"]["message"]
    down(host, "owner")
    host.until_phase("reader", "vda", "Up")
    down(host, "reader")


def test_every_layer_is_under_the_pools_policy(host: Bench) -> None:
    secret = make(host.folder / "secret.img", "aio")
    overlay = make(host.images / "policy", "qcow2", secret, "aio")
    host.push_disks("policy", tap_disk("vda", overlay, "qcow2", chain((secret, "aio"))))
    refused(host, "policy", "OutsidePools")
    link = host.images / "secret.img"
    link.symlink_to(secret)
    host.push_disks("policy", tap_disk("vda", overlay, "qcow2", chain((link, "aio"))))
    refused(host, "policy", "OutsidePools")
    link.unlink()
    link.hardlink_to(secret)
    host.push_disks("policy", tap_disk("vda", overlay, "qcow2", chain((link, "aio"))))
    refused(host, "policy", "HardLinked")
    link.unlink()
    host.push_disks("policy", tap_disk("vda", overlay, "qcow2", chain((link, "aio"))))
    refused(host, "policy", "ImageMissing")
    os.mkfifo(link)
    host.resync()
    refused(host, "policy", "NotAnImage")
    link.unlink()
    secret.rename(link)
    host.resync()
    host.until_phase("policy", "vda", "Up")
    down(host, "policy")


def test_the_definition_and_the_images_must_agree(host: Bench) -> None:
    base = make(host.images / "agree.base", "qcow2")
    other = make(host.images / "agree.other", "qcow2")
    middle = make(host.images / "agree.middle", "qcow2", base, "qcow2")
    overlay = make(host.images / "agree", "qcow2", middle, "qcow2")
    for more, reason in (
        ("", "BackingUndeclared"),
        ("<backingStore/>", "BackingUndeclared"),
        (chain((middle, "qcow2")), "BackingUndeclared"),
        (chain((other, "qcow2")), "BackingUndeclared"),
        (chain((middle, "qcow2"), (other, "qcow2")), "BackingUndeclared"),
        (chain((middle, "qcow2"), (base, "qcow")), "FormatMismatch"),
        (chain((middle, "qcow2"), (base, "qcow2"), (other, "qcow2")), "BackingMissing"),
    ):
        host.push_disks("agree", tap_disk("vda", overlay, "qcow2", more))
        refused(host, "agree", reason)
        assert not list(host.runtime.glob("taps/*/export"))
    host.push_disks("agree", tap_disk("vda", base, "qcow2", chain((other, "qcow2"))))
    refused(host, "agree", "BackingMissing")
    host.push_disks("agree", tap_disk("vda", overlay, "qcow2", chain((middle, "qcow2"), (base, "qcow2"))))
    before = host.until_phase("agree", "vda", "Up")
    host.push_disks("agree", tap_disk("vda", middle, "qcow2", chain((base, "qcow2"))))
    host.until(lambda: host.disk("agree", "vda")["diskseq"] not in {None, before["diskseq"]})
    assert host.until_phase("agree", "vda", "Up")["backing"] == [{"source": str(base), "format": "qcow2"}]
    down(host, "agree")


def test_an_image_is_in_its_chain_once(host: Bench) -> None:
    image = make(host.images / "once", "qcow2")
    subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", image, "-F", "raw", image], check=True)
    host.push_disks("once", tap_disk("vda", image, "qcow2", chain((image, "aio")) + "<readonly/>"))
    assert "twice" in refused(host, "once", "InvalidSource")["error"]["message"]
    down(host, "once")


def test_a_guest_moves_to_an_overlay_over_its_own_image(host: Bench) -> None:
    """The image that was written becomes the base that is only read; the lock on it goes over in between."""
    base = make(host.images / "moves.base", "qcow2")
    overlay = make(host.images / "moves", "qcow2", base, "qcow2")
    host.push_disks("moves", tap_disk("vda", base, "qcow2"))
    before = host.until_phase("moves", "vda", "Up")
    host.push_disks("moves", tap_disk("vda", overlay, "qcow2", chain((base, "qcow2"))))
    host.until(lambda: host.disk("moves", "vda")["diskseq"] not in {None, before["diskseq"]})
    after = host.until_phase("moves", "vda", "Up")
    host.push_disks("moves", tap_disk("vda", base, "qcow2"))
    host.until(lambda: host.disk("moves", "vda")["diskseq"] not in {None, after["diskseq"]})
    assert host.until_phase("moves", "vda", "Up")["backing"] == []
    down(host, "moves")


def test_a_chain_outlives_the_agent_and_comes_up_again_when_its_server_dies(host: Bench) -> None:
    base = make(host.images / "lives.base", "qcow2")
    fill(base, "qcow2", 0, 5)
    overlay = make(host.images / "lives", "qcow2", base, "qcow2")
    servers = set(host.servers())
    host.push_disks("lives", tap_disk("vda", overlay, "qcow2", chain((base, "qcow2"))))
    before = host.until_phase("lives", "vda", "Up")
    host.statuses.clear()
    host.restart(signal.SIGKILL)
    assert host.until_phase("lives", "vda", "Up")["diskseq"] == before["diskseq"]
    os.kill((set(host.servers()) - servers).pop(), signal.SIGKILL)
    host.until(lambda: host.disk("lives", "vda")["diskseq"] not in {None, before["diskseq"]})
    host.until_phase("lives", "vda", "Up")
    assert host.stable("lives", "vda").read_bytes()[:MIB] == b"\5" * MIB
    down(host, "lives")
