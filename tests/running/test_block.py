"""Block devices that the host already has: claimed, passed through, and never given to two."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.workbench import Bench, loop_disk

MakeDevice = Callable[[str], str]


def detach(device: str) -> None:
    subprocess.run(["losetup", "-d", device], check=False, capture_output=True)


def take_down(host: Bench) -> None:
    """Where a test has failed, the next one shall not meet its disks."""
    for guest, status in list(host.statuses.items()):
        if status["phase"] != "Down":
            absent(host, guest)


@pytest.fixture
def make_device(host: Bench) -> Iterator[MakeDevice]:
    """Makes block devices that are none of tapster's doing."""
    made: list[str] = []

    def make(name: str) -> str:
        command = ["losetup", "--show", "-f", str(host.image(name, 16 << 20))]
        made.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        return made[-1]

    yield make
    take_down(host)
    for device in made:
        detach(device)


def block_disk(target: str, path: str | Path, more: str = "") -> str:
    return f"<disk type='block'><driver name='phy'/><source dev='{path}'/><target dev='{target}'/>{more}</disk>"


def tap_on_device(target: str, path: str | Path) -> str:
    driver = "<driver name='tap2' type='aio'/>"
    return f"<disk type='block'>{driver}<source dev='{path}'/><target dev='{target}'/></disk>"


def absent(host: Bench, *guests: str) -> None:
    for guest in guests:
        host.absent(guest)
        host.until_guest(guest, "Down")


def reason(host: Bench, guest: str) -> str | None:
    """Why the disk is not as it should be, if it is told so."""
    return (host.disk(guest, "vda").get("error") or {}).get("reason")


def refused(host: Bench, guest: str, why: str = "SourceInUse") -> str:
    host.until(lambda: reason(host, guest) == why)
    assert host.disk(guest, "vda")["phase"] == "Refused"
    message: str = host.disk(guest, "vda")["error"]["message"]
    return message


@contextmanager
def other_name(device: str) -> Iterator[str]:
    name = f"/dev/tapster-{os.getpid()}-other-name"
    os.mknod(name, 0o600 | 0o060000, os.stat(device).st_rdev)  # noqa: PTH116
    try:
        yield name
    finally:
        os.unlink(name)  # noqa: PTH108


@contextmanager
def mounted(host: Bench, device: str) -> Iterator[Path]:
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    folder = host.folder / "mnt"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", device, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_device_is_passed_through_and_let_go(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("through")
    host.push_disks("through", block_disk("vda", device))
    up = host.until_phase("through", "vda", "Up")
    assert up["effective"] == {"backend": "block", "format": "raw", "server": "host device", "tap": None}
    assert up["device_path"] == device
    assert up["size_bytes"] == 16 << 20
    assert str(host.stable("through", "vda").readlink()) == device
    absent(host, "through")
    assert not list(host.runtime.glob("claims/*.json"))
    assert os.stat(device).st_rdev  # noqa: PTH116
    assert Path(f"/sys/block/{Path(device).name}/loop").exists()


def test_type_lies_and_stat_decides(host: Bench, make_device: MakeDevice) -> None:
    device, image = make_device("lies"), host.image("lies.img")
    host.push_disks("lies", loop_disk("vda", Path(device)), block_disk("vdb", image))
    status = host.until_guest("lies", "Up")
    assert [disk["effective"]["backend"] for disk in status["disks"]] == ["block", "loop"]
    assert [disk["requested"]["backend"] for disk in status["disks"]] == ["loop", "block"]
    absent(host, "lies")


@pytest.mark.parametrize("second", [block_disk, tap_on_device])
@pytest.mark.parametrize("first", [block_disk, tap_on_device])
def test_a_second_guest_is_refused(
    host: Bench, make_device: MakeDevice, first: Callable[..., str], second: Callable[..., str]
) -> None:
    device = make_device("twice")
    host.push_disks("one", first("vda", device))
    host.until_phase("one", "vda", "Up")
    with other_name(device) as other:
        for path in (device, other):
            host.push_disks("two", second("vda", path))
            assert "one/vda" in refused(host, "two")
        absent(host, "one")
        host.until_phase("two", "vda", "Up")
        absent(host, "two")


def test_one_guests_disk_is_not_another_guests_block_device(host: Bench) -> None:
    host.push_disks("owner", loop_disk("vda", host.image("owner.img")))
    device = host.until_phase("owner", "vda", "Up")["device_path"]
    for disk in (block_disk, tap_on_device):
        host.push_disks("thief", disk("vda", device))
        assert "owner/vda" in refused(host, "thief")
        host.push_disks("thief", disk("vda", host.stable("owner", "vda")))
        refused(host, "thief", "OutsidePools")
        absent(host, "thief")
    absent(host, "owner")


@pytest.mark.parametrize("disk", [block_disk, tap_on_device])
def test_a_mounted_device_is_refused(host: Bench, make_device: MakeDevice, disk: Callable[..., str]) -> None:
    device = make_device("mounted")
    with mounted(host, device) as folder:
        host.push_disks("mounted", disk("vda", device))
        assert f"mounted on {folder}" in refused(host, "mounted")
    host.until_phase("mounted", "vda", "Up")
    absent(host, "mounted")


def test_a_claimed_device_that_is_mounted_is_not_let_go(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("busy")
    host.push_disks("busy", block_disk("vda", device))
    host.until_phase("busy", "vda", "Up")
    with mounted(host, device):
        host.absent("busy")
        host.until_phase("busy", "vda", "InUse")
        assert str(host.stable("busy", "vda").readlink()) == device
    host.until_phase("busy", "vda", "Down")


def test_shareable_devices_are_shared_by_those_who_say_so(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("shared")
    for guest in ("share-a", "share-b"):
        host.push_disks(guest, block_disk("vda", device, "<shareable/>"))
        host.until_phase(guest, "vda", "Up")
    host.push_disks("share-c", block_disk("vda", device))
    refused(host, "share-c")
    absent(host, "share-a", "share-b")
    host.until_phase("share-c", "vda", "Up")
    absent(host, "share-c")


def test_a_read_only_disk_over_a_writable_device_says_that_it_is_not(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("ro")
    host.push_disks("ro", block_disk("vda", device, "<readonly/>"))
    assert "readonly" in host.until_phase("ro", "vda", "Up")["unhonoured"]
    absent(host, "ro")


def test_claims_outlive_the_agent(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("outlive")
    host.push_disks("outlive", block_disk("vda", device))
    before = host.until_phase("outlive", "vda", "Up")
    host.statuses.clear()
    host.restart()
    after = host.until_phase("outlive", "vda", "Up")
    assert after["diskseq"] == before["diskseq"]
    absent(host, "outlive")


def test_a_number_that_is_another_device_now_is_noticed(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("recycled")
    host.push_disks("recycled", block_disk("vda", device))
    before = host.until_phase("recycled", "vda", "Up")
    host.send(signal.SIGSTOP)  # it looks when strangers have taken the number, to whom it is theirs
    detach(device)
    subprocess.run(["losetup", device, host.image("stranger", 16 << 20)], check=True)
    with mounted(host, device):
        host.send(signal.SIGCONT)
        host.until(lambda: not host.stable("recycled", "vda").is_symlink())
        host.until(lambda: reason(host, "recycled") in {"SourceInUse", "DeviceInUse"})
        assert host.disk("recycled", "vda")["phase"] != "Up"
    after = host.until_phase("recycled", "vda", "Up")
    assert after["diskseq"] != before["diskseq"]
    absent(host, "recycled")


def test_a_device_that_is_gone_is_said_to_be_and_can_be_given_up(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("vanished")
    host.push_disks("vanished", block_disk("vda", device))
    host.until_phase("vanished", "vda", "Up")
    detach(device)
    host.resync()
    host.until(lambda: host.disk("vanished", "vda")["phase"] != "Up" and reason(host, "vanished"))
    absent(host, "vanished")
    assert not list(host.runtime.glob("claims/*.json"))


def test_the_link_to_a_device_that_is_gone_is_not_left_for_the_next_one_of_that_name(
    slow_bench: Bench, make_device: MakeDevice
) -> None:
    """Nor does anybody have to ask: by the time that a resync comes, a hypervisor may have opened the stranger."""
    device = make_device("unmapped")
    with other_name(device) as by_id:
        slow_bench.push_disks("unmapped", block_disk("vda", by_id))
        slow_bench.until_phase("unmapped", "vda", "Up")
    slow_bench.until(lambda: reason(slow_bench, "unmapped") == "ImageMissing")
    assert str(slow_bench.stable("unmapped", "vda").readlink()) == device
    detach(device)
    slow_bench.until(lambda: not slow_bench.stable("unmapped", "vda").is_symlink())
    slow_bench.until(lambda: reason(slow_bench, "unmapped") == "DeviceVanished")
    subprocess.run(["losetup", device, slow_bench.image("next-tenant", 16 << 20)], check=True)
    slow_bench.restart()
    assert not slow_bench.stable("unmapped", "vda").is_symlink()
    absent(slow_bench, "unmapped")


def test_a_claim_that_cannot_be_read_takes_nothing_with_it(host: Bench, make_device: MakeDevice) -> None:
    device = make_device("damaged")
    host.push_disks("damaged", block_disk("vda", device))
    host.until_phase("damaged", "vda", "Up")
    [claim] = host.runtime.glob("claims/*.json")
    claim.write_text(json.dumps({"guest": "damaged"}))
    host.resync()
    host.until(lambda: "diskseq" in claim.read_text())
    host.until_phase("damaged", "vda", "Up")
    absent(host, "damaged")
