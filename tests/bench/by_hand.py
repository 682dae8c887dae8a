"""What one would do without tapster: losetup and qemu-storage-daemon in a shell, and the bare ioctls in C."""

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from reconcilers.loop import control
from reconcilers.mounts import unmount_lazily
from tests.on_host import FOLDER_PREFIX, storage_daemons

LOOP_CTL_ADD, LOOP_CTL_REMOVE = 0x4C80, 0x4C81

DETACH_PATIENCE = 10.0

SHELL_LOOP = 'for image; do losetup -f --show "$image"; done'

DAEMON = """
export=$1.export
: >"$export"
qemu-storage-daemon --daemonize --pidfile "$1.pid" \
    --blockdev driver=file,node-name=image,filename="$1" --blockdev driver=qcow2,node-name=format,file=image \
    --export type=fuse,id=disk,node-name=format,mountpoint="$export",writable=on
losetup -f --show "$export"
"""
"""One qcow2 image as a block device, written as the manual pages have it."""


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for images; what stands on it is taken down after the block."""
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}bench-"))
    try:
        yield folder
    finally:
        take_down(folder)
        shutil.rmtree(folder)


@contextmanager
def loop_nodes(count: int) -> Iterator[None]:
    """Have so many free loop devices, so that nobody is the first to have their nodes made; then take them away."""
    before = _loop_numbers()
    missing = count - (len(before) - len(control.bound_minors()))
    numbers = (number for number in itertools.count() if number not in before)
    with Path("/dev/loop-control").open("rb", buffering=0) as driver:
        try:
            for number in itertools.islice(numbers, max(0, missing)):
                with suppress(FileExistsError):
                    fcntl.ioctl(driver, LOOP_CTL_ADD, number)
            yield
        finally:
            for number in _loop_numbers() - before:
                with suppress(OSError):  # somebody else has it now
                    fcntl.ioctl(driver, LOOP_CTL_REMOVE, number)


def _loop_numbers() -> set[int]:
    return {int(path.name.removeprefix("loop")) for path in Path("/sys/block").glob("loop*")}


def take_down(folder: Path) -> None:
    """Take down the loop devices over the folder's files, then the storage daemons whose files they are.

    Whoever looks at all loop devices of the host, an agent that starts for example, has each open for a moment.
    """
    deadline = time.monotonic() + DETACH_PATIENCE
    while not all(control.try_detach(device) for device in _devices_over(folder)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"somebody has loop devices over {folder} open: losetup --list shows them")
        time.sleep(0.01)
    for pid, words in storage_daemons():
        if f"{folder}/" in words:
            os.kill(pid, signal.SIGKILL)
    for mount in folder.glob("*.export"):
        unmount_lazily(mount)
        mount.unlink()


def _devices_over(folder: Path) -> Iterator[control.LoopDevice]:
    for minor in control.bound_minors():
        with suppress(OSError):
            backing = Path(f"/sys/block/loop{minor}/loop/backing_file").read_text()
            device = control.describe(minor) if backing.startswith(f"{folder}/") else None
            if device:
                yield device


def raw_images(folder: Path, count: int) -> list[Path]:
    """Sparse images of 1 MiB."""
    images = [folder / f"disk{number:05}.img" for number in range(count)]
    for image in images:
        with image.open("wb") as file:
            file.truncate(1 << 20)
    return images


def qcow2_images(folder: Path, count: int) -> list[Path]:
    """Images of 8 MiB as qemu-img makes them."""
    images = [folder / f"disk{number:05}.qcow2" for number in range(count)]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", images[0], "8M"], check=True)
    for image in images[1:]:
        shutil.copy(images[0], image)
    return images


def compile_bare_loop(folder: Path) -> Path | str:
    """The C program, or why there is none."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return "bare ioctls in C: there is no gcc; apt-get install gcc libc6-dev"
    program = folder / "bare_loop"
    source = Path(__file__).with_name("bare_loop.c")
    made = subprocess.run([compiler, "-O2", "-o", program, source], check=False, capture_output=True, text=True)
    return program if made.returncode == 0 else f"bare ioctls in C: gcc said {made.stderr.strip()}"


def seconds_of_shell_loop(images: Sequence[Path]) -> float:
    """A shell loop of losetup over the images, from start to end."""
    return _seconds(["sh", "-ec", SHELL_LOOP, "sh", *map(str, images)])


def seconds_of_bare_loop(program: Path, images: Sequence[Path]) -> float:
    """The C program over the images, its start included."""
    return _seconds([str(program), *map(str, images)])


def seconds_of_daemons(images: Sequence[Path]) -> float:
    """A storage daemon and a losetup for each image, two at a time."""
    names = "\0".join(map(str, images))
    return _seconds(["xargs", "-0", "-n1", "-P2", "sh", "-ec", DAEMON, "sh"], names)


def _seconds(command: Sequence[str], given: str = "") -> float:
    began = time.perf_counter()
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    ended = subprocess.run(command, check=False, input=given, text=True, stdout=nothing, stderr=pipe)
    took = time.perf_counter() - began
    if ended.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    return took
