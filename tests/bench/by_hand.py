"""What one would do without tapster: losetup and qemu-storage-daemon in a shell, and the bare ioctls in C."""

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from reconcilers.loop import control, minors
from reconcilers.mounts import unmount_lazily
from reconcilers.tuning import Aio
from tests.on_host import FOLDER_PREFIX, storage_daemons

LOOP_CTL_ADD, LOOP_CTL_REMOVE = 0x4C80, 0x4C81

DETACH_PATIENCE = 10.0

SHELL_LOOP = 'for image; do losetup -f --show "$image"; done'

_SERVER = """
qemu-storage-daemon --daemonize --pidfile "$1.pid" \\
    --blockdev driver=file,node-name=image,filename="$1",locking=off,aio=$AIO,cache.direct=off,cache.no-flush=off,\\
discard=unmap \\
    --blockdev driver=$FORMAT,node-name=format,file=image,discard=unmap,detect-zeroes=off \\
    """

_EXPORT = "id=disk,node-name=format,writable=on,writethrough=off"

FUSE_LOOP = f"""
: >"$1.export"
{_SERVER}--export type=fuse,mountpoint="$1.export",allow-other=off,{_EXPORT}
losetup -f --show "$1.export"
"""
"""An image as a loop device over a storage daemon's export, with the flags that tapster gives it, but in no jail."""

NBD = f"""
{_SERVER}--nbd-server addr.type=unix,addr.path="$1.sock" --export type=nbd,name=disk,{_EXPORT}
for number in $(seq 0 15); do  # one that was let go a moment ago may be busy still
    [ ! -e /sys/block/nbd$number/pid ] && nbd-client -N disk -unix "$1.sock" /dev/nbd$number -b 512 >&2 && break
done
echo /dev/nbd$number | tee "$1.nbd"
"""
"""The same as a device of the kernel's nbd."""

Device = Callable[[], AbstractContextManager[Path]]
"""Makes a block device for the length of a block."""


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
    missing = count - (len(before) - len(minors.bound()))
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
    """Take down the devices over the folder's files, then the storage daemons whose files they are.

    Whoever looks at all loop devices of the host, an agent that starts for example, has each open for a moment.
    """
    for note in folder.glob("*.nbd"):
        subprocess.run(["nbd-client", "-d", note.read_text().strip()], check=True, stdout=subprocess.DEVNULL)
        note.unlink()
    deadline = time.monotonic() + DETACH_PATIENCE
    while not all(control.try_detach(device) for device in _devices_over(folder)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"somebody has loop devices over {folder} open: losetup --list shows them")
        time.sleep(0.01)
    for pid in daemons(folder):
        os.kill(pid, signal.SIGKILL)
    for mount in folder.glob("*.export"):
        unmount_lazily(mount)
        mount.unlink()
    for listener in folder.glob("*.sock"):
        listener.unlink()


def daemons(folder: Path) -> list[int]:
    """The storage daemons that serve the folder's files."""
    return [pid for pid, words in storage_daemons() if f"{folder}/" in words]


def _devices_over(folder: Path) -> Iterator[control.LoopDevice]:
    for minor in minors.bound():
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


def seconds_of_qcow2_loops(images: Sequence[Path]) -> float:
    """A storage daemon and a losetup for each image, two at a time."""
    return _seconds(["xargs", "-0", "-n1", "-P2", "sh", "-ec", FUSE_LOOP, "sh"], "\0".join(map(str, images)), "qcow2")


def seconds_of_each(script: str, images: Sequence[Path]) -> float:
    """`FUSE_LOOP` or `NBD` for each raw image, one after the other."""
    return _seconds(["xargs", "-0", "-n1", "sh", "-ec", script, "sh"], "\0".join(map(str, images)))


def by_shell(script: str, image: Path, aio: Aio = Aio.THREADS) -> Device:
    """What a script makes of a raw image; a storage daemon reads and writes it by way of `aio`."""

    @contextmanager
    def device() -> Iterator[Path]:
        command = ["sh", "-ec", script, "sh", str(image)]
        try:
            made = subprocess.run(command, check=False, capture_output=True, text=True, env=_surroundings(aio=aio))
            if made.returncode != 0:
                raise RuntimeError(f"{script} ended with {made.returncode}: {made.stderr.strip()[-500:]}")
            yield Path(made.stdout.strip())
        finally:
            take_down(image.parent)

    return device


def _seconds(command: Sequence[str], given: str = "", image_format: str = "raw") -> float:
    began = time.perf_counter()
    pipe, nothing, surroundings = subprocess.PIPE, subprocess.DEVNULL, _surroundings(image_format)
    ended = subprocess.run(command, check=False, input=given, text=True, stdout=nothing, stderr=pipe, env=surroundings)
    took = time.perf_counter() - began
    if ended.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    return took


def _surroundings(image_format: str = "raw", aio: Aio = Aio.THREADS) -> dict[str, str]:
    return os.environ | {"FORMAT": image_format, "AIO": aio}
