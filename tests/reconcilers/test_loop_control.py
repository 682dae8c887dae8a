"""The loop driver's ioctls on the real kernel."""

import errno
import fcntl
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reconcilers.actual import FileId, Source, SourceKind
from reconcilers.errors import DiskError
from reconcilers.exclusive import claim
from reconcilers.loop import control, minors, scan
from reconcilers.loop.control import LoopDevice
from reconcilers.loop.devices import LoopDevices
from reconcilers.loop.minors import LoopNumbers
from reconcilers.reason import Reason
from reconcilers.source import OpenSource
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format
from reconcilers.tag import Tag
from tests.on_host import FOLDER_PREFIX

KEY = DiskKey("vm", "vda")
pytestmark = pytest.mark.usefixtures("host_parts")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Named so that what is left behind is found out."""
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as name:
        yield Path(name)


@pytest.fixture
def devices(folder: Path) -> Iterator[LoopDevices]:
    instance = LoopDevices(f"{os.getpid():08x}", folder)
    yield instance
    for device in instance.survey().values():
        while not control.try_detach(device):
            pass


def image(folder: Path, size: int = 1 << 20) -> int:
    path = folder / f"image-{len(list(folder.iterdir()))}"
    path.write_bytes(bytes(size))
    return os.open(path, os.O_RDWR)


def attach(
    devices: LoopDevices, fd: int, key: DiskKey = KEY, *, read_only: bool = False, **numbers: int | None
) -> LoopDevice:
    return devices.attach(
        key,
        fd,
        read_only=read_only,
        block_size=numbers.get("block_size"),
        offset=numbers.get("offset") or 0,
        size_limit=numbers.get("size_limit"),
    )


def test_numbers_that_others_have_taken_are_looked_at_anew(folder: Path, devices: LoopDevices) -> None:
    numbers, tag = LoopNumbers(), Tag.of(f"{os.getpid():08x}", KEY)
    fds = [image(folder) for _ in range(81)]
    taken = [attach(devices, fd, DiskKey("vm", f"vd{number}")) for number, fd in enumerate(fds[1:])]
    numbers._free = {device.minor for device in taken}
    device = control.attach(fds[0], numbers, tag=tag, read_only=False, direct_io=False, block_size=512)
    assert device.minor not in {other.minor for other in taken}
    for fd in fds:
        os.close(fd)


def test_numbers_that_are_taken_while_they_are_looked_at_hold_nobody_up(
    monkeypatch: pytest.MonkeyPatch, folder: Path, devices: LoopDevices
) -> None:
    numbers, tag = LoopNumbers(), Tag.of(f"{os.getpid():08x}", KEY)
    fds = [image(folder) for _ in range(21)]
    taken = {attach(devices, fd, DiskKey("vm", f"vd{number}")).minor for number, fd in enumerate(fds[1:])}
    with monkeypatch.context() as late:
        late.setattr(minors, "_minors", lambda: taken)
        late.setattr(minors, "is_bound", lambda _minor: False)
        numbers.learn()
        device = control.attach(fds[0], numbers, tag=tag, read_only=False, direct_io=False, block_size=512)
    assert device.minor not in taken
    for fd in fds:
        os.close(fd)


def test_a_number_that_is_taken_while_they_are_looked_at_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, taken = LoopNumbers(), set[int]()

    def slowly(_minor: int) -> bool:
        if not taken:
            taken.add(numbers.take())
        return False

    numbers.learn()
    monkeypatch.setattr(minors, "is_bound", slowly)
    numbers.learn()
    assert taken
    assert not taken & numbers._free


def test_what_was_asked_for_is_read_back(folder: Path, devices: LoopDevices) -> None:
    fd = image(folder)
    device = attach(devices, fd, offset=4096, size_limit=8192, block_size=4096)
    assert (device.size_bytes, device.logical_block_size, device.offset, device.size_limit) == (8192, 4096, 4096, 8192)
    assert device.tag == Tag.of(f"{os.getpid():08x}", KEY)
    assert (device.read_only, device.direct_io, device.autoclear) == (False, False, False)
    assert device.backing
    assert device.backing.inode == os.fstat(fd).st_ino
    os.close(fd)
    found = devices.find(KEY)
    assert found == device


def test_a_read_only_mark_does_not_stick_to_the_number(folder: Path, devices: LoopDevices) -> None:
    fd = image(folder)
    minor = attach(devices, fd, read_only=True).minor
    devices.detach(KEY)
    numbers = LoopNumbers()
    numbers.give_back(minor)
    device = control.attach(
        fd, numbers, tag=Tag.of(f"{os.getpid():08x}", KEY), read_only=False, direct_io=False, block_size=512
    )
    assert Path(f"/sys/block/loop{device.minor}/ro").read_text() == "0\n"
    os.close(os.open(device.path, os.O_RDWR))
    os.close(fd)


def test_an_impossible_block_size_binds_nothing(folder: Path, devices: LoopDevices) -> None:
    fd = image(folder)
    with pytest.raises(DiskError) as refused:
        attach(devices, fd, block_size=513)
    assert refused.value.reason is Reason.KERNEL_ERROR
    os.close(fd)
    assert devices.survey() == {}


def test_a_device_in_use_is_not_detached_and_not_marked(folder: Path, devices: LoopDevices) -> None:
    fd = image(folder)
    device = attach(devices, fd)
    os.close(fd)
    holder = os.open(device.path, os.O_RDONLY)
    with pytest.raises(DiskError) as refused:
        devices.detach(KEY)
    assert refused.value.reason is Reason.DEVICE_IN_USE
    os.close(holder)
    # Had the kernel's mark been left on, closing would have taken the device away.
    assert devices.find(KEY) == device
    devices.detach(KEY)
    assert devices.find(KEY) is None
    devices.detach(KEY)


def test_a_number_that_is_somebody_elses_by_now_is_left_alone(folder: Path, devices: LoopDevices) -> None:
    fd = image(folder)
    device = attach(devices, fd)
    os.close(fd)
    for other in (replace(device, tag=None), replace(device, diskseq=(device.diskseq or 0) - 1)):
        assert control.try_detach(other)
        assert devices.find(KEY) == device


def test_a_device_that_can_not_be_taken_back_stays_the_disks_only_one(folder: Path, devices: LoopDevices) -> None:
    fd = image(folder)
    spoilt = devices.attach(KEY, fd, read_only=False, discard=False)
    assert control.try_detach(spoilt)
    devices._numbers._free = {spoilt.minor}
    with Path(spoilt.path).open("rb"):  # as udevd has it when it comes up
        with pytest.raises(DiskError) as refused:
            attach(devices, fd)
        assert refused.value.reason is Reason.DEVICE_IN_USE
        found = devices.find(KEY)
        assert found
        assert [device.minor for device in scan.bound_devices() if device.backing == found.backing] == [spoilt.minor]
    devices.detach(KEY)
    device = attach(devices, fd)
    os.close(fd)
    assert control.discards(device)


def test_a_device_is_known_whatever_fails_once_it_is_bound(
    folder: Path, devices: LoopDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_device: LoopDevice) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(control, "stop_discard", failing)
    fd = image(folder)
    with pytest.raises(OSError, match="Too many open files"):
        devices.attach(KEY, fd, read_only=False, discard=False)
    os.close(fd)
    assert devices.find(KEY)


def test_grow(folder: Path, devices: LoopDevices) -> None:
    fd = image(folder)
    device = attach(devices, fd)
    os.truncate(fd, 1 << 21)
    control.grow(device)
    os.close(fd)
    grown = control.describe(device.minor)
    assert grown
    assert grown.size_bytes == 1 << 21
    assert grown.diskseq == device.diskseq


def test_another_instance_sees_nothing_of_ours(folder: Path, devices: LoopDevices) -> None:
    fd = image(folder)
    attach(devices, fd)
    os.close(fd)
    assert LoopDevices("ffffffff", folder).survey() == {}
    assert len(LoopDevices(f"{os.getpid():08x}", folder).survey()) == 1


def test_surveys_forget_nothing_that_comes_up_meanwhile(folder: Path, devices: LoopDevices) -> None:
    keys = [DiskKey("vm", f"vd{number}") for number in range(60)]
    fds = [image(folder) for _ in keys]
    halves = [threading.Thread(target=_attach_all, args=(devices, keys[n::2], fds[n::2])) for n in range(2)]
    for half in halves:
        half.start()
    while any(half.is_alive() for half in halves):
        devices.survey()
    for fd in fds:
        os.close(fd)
    assert all(devices.find(key) for key in keys)


def _attach_all(devices: LoopDevices, keys: list[DiskKey], fds: list[int]) -> None:
    for key, fd in zip(keys, fds, strict=True):
        attach(devices, fd, key)


def test_a_device_that_does_not_answer_holds_up_no_scan(
    folder: Path, devices: LoopDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    fds = [image(folder) for _ in range(3)]
    made = [attach(devices, fd, DiskKey("vm", f"vd{number}")) for number, fd in enumerate(fds)]
    for fd in fds:
        os.close(fd)
    hung, answer = made[1].minor, threading.Event()
    describe, asked = control.describe, []

    def hanging(minor: int) -> LoopDevice | None:
        if minor == hung:
            asked.append(minor)
            answer.wait()
        return describe(minor)

    monkeypatch.setattr(control, "describe", hanging)
    for _ in range(2):
        seen = {device.minor: device for device in scan.bound_devices()}
        assert seen[made[0].minor] == made[0]
        assert seen[made[2].minor] == made[2]
        assert seen[hung].tag is None
        assert seen[hung].backing_path
    assert asked == [hung]
    answer.set()


def test_a_device_that_does_not_answer_may_be_on_a_file_of_any_name(folder: Path, devices: LoopDevices) -> None:
    path = folder / os.fsdecode(b"caf\xe9")
    path.write_bytes(bytes(1 << 20))
    with path.open("r+b") as file:
        device = attach(devices, file.fileno())
    seen = control.describe_outside(device.minor)
    assert seen
    assert seen.backing_path == str(path)


def test_a_scan_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, folder: Path, devices: LoopDevices) -> None:
    """Half a list would make an image look free that is not."""
    fd = image(folder)
    attach(devices, fd)
    os.close(fd)

    def failing(minor: int) -> LoopDevice | None:
        raise DiskError(Reason.KERNEL_ERROR, "no descriptors left")

    with monkeypatch.context() as patched:
        patched.setattr(control, "describe", failing)
        with pytest.raises(DiskError):
            scan.bound_devices()


def test_the_kernel_keeps_the_images_lock_after_our_descriptor_is_gone(folder: Path, devices: LoopDevices) -> None:
    fd = image(folder)
    fcntl.flock(fd, fcntl.LOCK_SH)
    path = Path(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
    attach(devices, fd)
    os.close(fd)
    with path.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_foreign_device_that_does_not_answer_in_time_is_not_taken_for_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "image"
    path.write_bytes(bytes(1 << 20))
    made = subprocess.run(["losetup", "-f", "--show", path], check=True, capture_output=True, text=True)
    fd = os.open(path, os.O_RDWR)
    try:
        monkeypatch.setattr(scan, "STALLED_SECONDS", 0)  # as on a host that has no time for us
        source = Source(
            kind=SourceKind.FILE, identity=FileId(path.stat().st_dev, path.stat().st_ino), size_bytes=1 << 20
        )
        spec = DiskSpec(key=KEY, source=str(path), backend=Backend.LOOP, format=Format.RAW)
        for _ in range(20):
            with pytest.raises(DiskError) as refused:
                claim(OpenSource(str(path), fd, source), spec)
            assert refused.value.reason is Reason.SOURCE_IN_USE
    finally:
        os.close(fd)
        subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)
