"""What the kernel says about block devices."""

import asyncio
from pathlib import Path

from reconcilers.kernel_events import KernelEvents, block_node
from reconcilers.loop import control
from reconcilers.spec import DiskKey
from reconcilers.tag import Tag


def test_only_block_devices_have_a_node() -> None:
    said = b"change@/devices/virtual/block/loop3\0ACTION=change\0SUBSYSTEM=block\0DEVNAME=loop3\0DISKSEQ=7\0"
    assert block_node(said) == "/dev/loop3"
    assert block_node(said.replace(b"=block", b"=tty")) is None
    assert block_node(b"add@/bus/x\0SUBSYSTEM=block\0") is None
    assert block_node(b"libudev\0\xfe\xed\xca\xfe") is None
    assert block_node(b"") is None


async def test_the_kernel_tells_of_a_loop_device_that_comes_and_goes(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    heard = asyncio.Queue[str]()
    with KernelEvents(heard.put_nowait):
        numbers = control.LoopNumbers()
        numbers.learn()
        tag = Tag.of("00000000", DiskKey("kernel-events", "vda"))
        with image.open("r+b") as file:
            device = control.attach(file.fileno(), numbers, tag=tag, read_only=False, direct_io=False, block_size=512)
        await _until_heard(heard, device.path)
        while not heard.empty():
            heard.get_nowait()
        while not control.try_detach(device):  # udev may have it open for a moment, to look at it
            pass
        await _until_heard(heard, device.path)


async def _until_heard(heard: asyncio.Queue[str], node: str) -> None:
    async with asyncio.timeout(60):
        while await heard.get() != node:
            pass
