"""Others have their hands in it: foreign losetup and writers, images that change, devices and taps that vanish."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.workbench import Bench, domain, loop_disk, tap_disk


@contextmanager
def foreign_loop(image: Path, *options: str) -> Iterator[str]:
    command = ["losetup", "--show", "-f", *options, str(image)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=False, capture_output=True)


@pytest.mark.parametrize("disk", [loop_disk, tap_disk])
def test_a_foreign_loop_device_on_the_image_is_named(host: Bench, disk: object) -> None:
    make, guest = (loop_disk, "foreign-loop") if disk is loop_disk else (tap_disk, "foreign-tap")
    image = host.image(f"{guest}.img")
    with foreign_loop(image) as device:
        host.push_disks(guest, make("vda", image))
        refused = host.until_phase(guest, "vda", "Refused")
        assert refused["error"]["reason"] == "SourceInUse"
        assert device in refused["error"]["message"]
    host.until_phase(guest, "vda", "Up")


def test_a_foreign_writer_is_named(host: Bench) -> None:
    image = host.image("writer.img")
    with image.open("r+b"):
        holder = subprocess.Popen(["sleep", "60"], stdout=image.open("r+b"))
    try:
        host.push_disks("writer", loop_disk("vda", image))
        refused = host.until_phase("writer", "vda", "Refused")
        assert f"sleep (pid {holder.pid})" in refused["error"]["message"]
    finally:
        holder.kill()
        holder.wait()
    host.until_phase("writer", "vda", "Up")


# Two guests on one image: what each says, and whether both may have it.
TOGETHER = {
    "both shareable": ("<shareable/>", "<shareable/>", True),
    "both read-only": ("<readonly/>", "<readonly/>", True),
    "one shareable": ("<shareable/>", "", False),
    "the other shareable": ("", "<shareable/>", False),
    "one read-only": ("<readonly/>", "", False),
    "the other read-only": ("", "<readonly/>", False),
    "shareable and read-only": ("<shareable/>", "<readonly/>", False),
    "one both shareable and read-only": ("<readonly/><shareable/>", "", False),
    "the other both shareable and read-only": ("", "<readonly/><shareable/>", False),
    "both shareable, one read-only": ("<shareable/>", "<readonly/><shareable/>", True),
}


@pytest.mark.parametrize("second", ["loop", "tap"])
@pytest.mark.parametrize("case", TOGETHER)
def test_two_guests_share_an_image_only_if_both_say_so(host: Bench, case: str, second: str) -> None:
    one, other, allowed = TOGETHER[case]
    names = [f"{second}{list(TOGETHER).index(case)}-{n}" for n in "12"]
    image = host.image(f"{names[0]}.img")
    host.push_disks(names[0], loop_disk("vda", image, one))
    host.until_phase(names[0], "vda", "Up")
    host.push_disks(
        names[1], loop_disk("vda", image, other) if second == "loop" else tap_disk("vda", image, "aio", other)
    )
    disk = host.until_phase(names[1], "vda", "Up" if allowed else "Refused")
    if not allowed:
        assert f"{names[0]}/vda" in disk["error"]["message"]


def test_a_grown_image_grows_its_device_online(host: Bench) -> None:
    image = host.image("grow.img")
    host.push_disks("grow", loop_disk("vda", image))
    before = host.until_phase("grow", "vda", "Up")
    with host.stable("grow", "vda").open("rb"):
        os.truncate(image, 3 << 20)
        host.resync()
        host.until(lambda: host.disk("grow", "vda")["size_bytes"] == 3 << 20)
    assert host.disk("grow", "vda")["diskseq"] == before["diskseq"]


def test_a_truncated_image_is_reported_and_its_device_not_shrunk(host: Bench) -> None:
    image = host.image("shrink.img")
    host.push_disks("shrink", loop_disk("vda", image))
    before = host.until_phase("shrink", "vda", "Up")
    for size, reason in ((1 << 19, "ImageShrunk"), (0, "ImageEmpty")):
        os.truncate(image, size)
        host.resync()
        host.until(lambda reason=reason: (host.disk("shrink", "vda")["error"] or {}).get("reason") == reason)  # type: ignore[misc]
        disk = host.disk("shrink", "vda")
        assert (disk["phase"], disk["diskseq"], disk["size_bytes"]) == ("Degraded", before["diskseq"], 1 << 20)
        assert host.stable("shrink", "vda").is_block_device()
    os.truncate(image, 1 << 20)
    assert host.until_phase("shrink", "vda", "Up")["diskseq"] == before["diskseq"]


def test_a_deleted_image_leaves_its_disk_up_and_says_so(host: Bench) -> None:
    image = host.image("deleted.img")
    host.push_disks("deleted", loop_disk("vda", image), tap_disk("vdb", image.with_suffix(".tap")))
    host.until_phase("deleted", "vda", "Up")
    host.image("deleted.tap")
    before = host.until_guest("deleted", "Up")
    for suffix in (".img", ".tap"):
        image.with_suffix(suffix).unlink()
    host.resync()
    for number, target in enumerate(("vda", "vdb")):
        disk = host.until_phase("deleted", target, "Degraded")
        assert disk["error"]["reason"] == "ImageMissing"
        assert disk["diskseq"] == before["disks"][number]["diskseq"]
        assert host.stable("deleted", target).is_block_device()


def test_a_replaced_image_is_taken_when_nobody_has_the_old_one(host: Bench) -> None:
    image, new = host.image("replaced.img"), host.image("replaced.new")
    new.write_bytes(b"new" * 1000)
    host.push_disks("replaced", loop_disk("vda", image))
    before = host.until_phase("replaced", "vda", "Up")
    with host.stable("replaced", "vda").open("rb"):
        new.replace(image)
        host.resync()
        held = host.until_phase("replaced", "vda", "InUse")
        assert held["diskseq"] == before["diskseq"]
    host.until_phase("replaced", "vda", "Up")
    assert host.stable("replaced", "vda").read_bytes()[:3] == b"new"


def test_a_stable_path_that_names_a_foreign_device_is_taken_away(host: Bench) -> None:
    image = host.image("stale.img")
    host.push_disks("stale", loop_disk("vda", image))
    host.until_phase("stale", "vda", "Up")
    device = str(host.stable("stale", "vda").readlink())
    with foreign_loop(host.image("stale-foreign.img")) as foreign:
        link = host.stable("stale", "vda")
        link.unlink()
        link.symlink_to(foreign)
        host.resync()
        host.until(lambda: str(link.readlink()) == device)
        host.send(signal.SIGSTOP)  # it would bring the disk up again while we are at it
        subprocess.run(["losetup", "-d", device], check=True)
        link.unlink()
        link.symlink_to(foreign)
        image.rename(image.with_suffix(".away"))
        host.send(signal.SIGCONT)
        host.resync()
        host.until(lambda: host.disk("stale", "vda")["phase"] == "Refused")
        assert not link.is_symlink()
    image.with_suffix(".away").rename(image)
    host.until_phase("stale", "vda", "Up")


def test_devices_taken_behind_our_back_come_up_again(host: Bench) -> None:
    disks = [loop_disk("vda", host.image("yanked.a")), tap_disk("vdb", host.image("yanked.b"))]
    host.push_disks("yanked", *disks)
    before = host.until_guest("yanked", "Up")
    for disk in before["disks"]:
        subprocess.run(["losetup", "-d", disk["device_path"]], check=True)
    servers = host.servers()
    host.resync()
    host.until(
        lambda: all(
            new["phase"] == "Up" and new["diskseq"] != old["diskseq"]
            for new, old in zip(host.statuses["yanked"]["disks"], before["disks"], strict=True)
        )
    )
    assert all(host.stable("yanked", target).is_block_device() for target in ("vda", "vdb"))
    assert host.servers() == servers


def test_a_killed_tap_that_nobody_uses_comes_up_again_by_itself(host: Bench) -> None:
    servers = set(host.servers())
    host.push_disks("killed", tap_disk("vda", host.formatted("killed.qcow2", "qcow2"), "qcow2"))
    before = host.until_phase("killed", "vda", "Up")
    os.kill((set(host.servers()) - servers).pop(), signal.SIGKILL)
    host.until(lambda: host.disk("killed", "vda")["diskseq"] not in {None, before["diskseq"]})
    host.until_phase("killed", "vda", "Up")
    assert len(set(host.servers()) - servers) == 1


def test_a_killed_tap_goes_though_the_image_in_its_place_can_not_be_had(host: Bench) -> None:
    servers = set(host.servers())
    old, taken = host.image("dead.old"), host.image("dead.taken")
    host.push_disks("dead", tap_disk("vda", old))
    host.until_phase("dead", "vda", "Up")
    with foreign_loop(taken):
        host.push_disks("dead", tap_disk("vda", taken))
        host.until(lambda: (host.disk("dead", "vda")["error"] or {}).get("reason") == "SourceInUse")
        os.kill((set(host.servers()) - servers).pop(), signal.SIGKILL)
        host.until(lambda: host.disk("dead", "vda")["phase"] == "Refused" and not host.disk("dead", "vda")["diskseq"])
        assert not host.stable("dead", "vda").is_symlink()
    host.until_phase("dead", "vda", "Up")


def test_three_hundred_guests_at_once(host: Bench) -> None:
    images = [host.image(f"many-{number}.img") for number in range(300)]
    for number, image in enumerate(images):
        host.push_disks(f"many-{number}", loop_disk("vda", image))
        if number % 50 == 0:
            host.resync()
    host.until(lambda: all(host.disk(f"many-{n}", "vda").get("phase") == "Up" for n in range(300)))
    host.resync()
    host.push("many-again", domain("many-again"))
    host.until_guest("many-again", "Up")
    links = [host.stable(f"many-{number}", "vda") for number in range(300)]
    assert len({link.readlink() for link in links}) == 300
    told = [event["data"] for event in host.events("tapster.disk.phase") if event["data"]["guest"].startswith("many-")]
    # Attaching is told of where it takes long.
    assert [event for event in told if event["phase"] not in {"Attaching", "Up"}] == []
