"""What the kernel says about block devices."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from reconcilers import kernel_events
from reconcilers.kernel_events import KernelEvents, Uevent, block_uevent
from reconcilers.loop import control, minors
from reconcilers.loop.devices import LoopDevices
from reconcilers.spec import DiskKey
from reconcilers.tag import Tag, disk_id


def test_only_block_devices_have_a_node() -> None:
    said = b"change@/devices/virtual/block/loop3\0ACTION=change\0SUBSYSTEM=block\0DEVNAME=loop3\0DISKSEQ=7\0"
    assert block_uevent(said) == Uevent("/dev/loop3", 7)
    assert block_uevent(said.replace(b"DISKSEQ=7\0", b"")) == Uevent("/dev/loop3", None)
    assert block_uevent(said.replace(b"=block", b"=tty")) is None
    assert block_uevent(b"add@/bus/x\0SUBSYSTEM=block\0") is None
    assert block_uevent(b"libudev\0\xfe\xed\xca\xfe") is None
    assert block_uevent(b"") is None


async def test_the_kernel_tells_of_a_loop_device_that_comes_and_goes(tmp_path: Path) -> None:
    heard = asyncio.Queue[Uevent]()
    with KernelEvents(heard.put_nowait), bound(tmp_path / "image") as device:
        await _until_heard(heard, device.path)
        while not heard.empty():
            heard.get_nowait()
        taken_away(device)
        await _until_heard(heard, device.path)


async def test_a_device_that_was_bound_anew_meanwhile_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes a disk away may give its number to another file before we read what the kernel said."""
    monkeypatch.setattr(kernel_events, "REST_SECONDS", 0.5)
    devices, key = LoopDevices("00000000", tmp_path), DiskKey("kernel-events", "vda")
    heard = asyncio.Queue[Uevent]()
    with KernelEvents(heard.put_nowait), (tmp_path / "image").open("w+b") as image, ExitStack() as stack:
        image.truncate(1 << 20)
        ours = devices.attach(key, image.fileno(), read_only=False)
        stack.callback(taken_away, ours)
        await _until_heard(heard, ours.path)  # and now it rests
        taken_away(ours)
        theirs = stack.enter_context(bound(tmp_path / "other", ours.minor))
        assert minors.is_bound(ours.minor)
        lost = None
        while lost is None:
            uevent = await asyncio.wait_for(heard.get(), 60)
            lost = devices.lost(ours.minor, uevent.diskseq) if uevent.node == theirs.path else None
        assert lost == disk_id(key)


@contextmanager
def bound(image: Path, minor: int | None = None) -> Iterator[control.LoopDevice]:
    """A loop device over a new file, if need be with this number; taken away at the end, unless it was before."""
    image.write_bytes(bytes(1 << 20))
    numbers = minors.LoopNumbers()
    if minor is None:
        numbers.learn()
    else:
        numbers.give_back(minor)
    tag = Tag.of("00000001", DiskKey("kernel-events", "vdb"))
    with image.open("r+b") as file:
        device = control.attach(file.fileno(), numbers, tag=tag, read_only=False, direct_io=False, block_size=512)
    try:
        yield device
    finally:
        taken_away(device)


def taken_away(device: control.LoopDevice) -> None:
    while not control.try_detach(device):  # udev may have it open for a moment, to look at it
        pass


async def _until_heard(heard: asyncio.Queue[Uevent], node: str) -> None:
    async with asyncio.timeout(60):
        while (await heard.get()).node != node:
            pass
