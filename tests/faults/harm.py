"""What is done to a host in these tests: disks that fill up, storage that fails, limits. All of it is taken back."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from reconcilers.mounts import is_mount_point, unmount_lazily
from tests.workbench import PATIENCE, Bench

ROOT = Path(__file__).parents[2]
FILES_AT_MOST = 1000
"""More inodes than a small disk has that is to have none left."""


@contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[Path]:
    """A tmpfs on a folder, unmounted even if somebody has it open."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tapster-test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs is not allowed here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        unmount_lazily(folder)


@contextmanager
def disk_that_can_be_frozen(folder: Path) -> Iterator[Path]:
    """An ext4 on a folder, which is empty at first."""
    with tempfile.NamedTemporaryFile(prefix="tapster-below-") as below:
        below.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", below.name], check=True)
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", "loop", below.name, str(folder)], check=True)
        try:
            yield folder
        finally:
            unmount_lazily(folder)


@contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """Whoever writes to the file system of a folder waits until the end of the block (ioctl_fifreeze(2))."""
    subprocess.run(["fsfreeze", "--freeze", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave neither a block nor an inode in the file system of a folder; what takes the room is in the one returned."""
    ballast = folder / "ballast"
    ballast.mkdir()
    with (ballast / "blocks").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    with suppress(OSError):
        for number in range(FILES_AT_MOST):
            (ballast / str(number)).touch()
    return ballast


def free(ballast: Path) -> None:
    """Give back what `fill` took."""
    shutil.rmtree(ballast)


class FuseFolder:
    """A folder that a process of its own serves: storage that can fail, vanish and come back."""

    def __init__(self, mount_point: Path, below: Path) -> None:
        self._mount_point = mount_point
        self._below = below
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def image(self) -> Path:
        """The one file in it."""
        return self._mount_point / "a.img"

    def serve(self, *, failing_writes: bool = False) -> None:
        """Serve it; with failing writes, each of them gets EIO."""
        words = [str(self._mount_point), str(self._below), *(["eio"] if failing_writes else [])]
        self._server = subprocess.Popen([sys.executable, "-m", "tests.faults.fuse_folder", *words], cwd=ROOT)
        deadline = time.monotonic() + PATIENCE
        while not is_mount_point(self._mount_point):
            assert self._server.poll() is None, "the server of the FUSE folder ended"
            assert time.monotonic() < deadline, "the FUSE folder is not mounted"
            time.sleep(0.01)

    def die(self) -> None:
        """Kill its server, which leaves a mount that answers nothing."""
        assert self._server is not None
        self._server.kill()
        self._server.wait()

    def clear(self) -> None:
        """Kill its server and take the mount away."""
        self.die()
        unmount_lazily(self._mount_point)


@contextmanager
def fuse_folder(mount_point: Path, size: int, *, failing_writes: bool = False) -> Iterator[FuseFolder]:
    """A folder on FUSE, for the length of the block."""
    mount_point.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix="tapster-below-") as below:
        below.truncate(size)
        folder = FuseFolder(mount_point, Path(below.name))
        try:
            folder.serve(failing_writes=failing_writes)
            yield folder
        finally:
            folder.clear()


@contextmanager
def no_free_descriptor(pid: int) -> Iterator[None]:
    """The process gets no new file descriptor, and keeps those that it has."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextmanager
def little_memory(pid: int, size: int) -> Iterator[None]:
    """What the process starts from now on may have so many bytes of its own (RLIMIT_DATA), and it no more itself."""
    before = resource.prlimit(pid, resource.RLIMIT_DATA)
    resource.prlimit(pid, resource.RLIMIT_DATA, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_DATA, before)


def launcher_pid(bench: Bench) -> int:
    """The process that starts the servers of the bench's agent."""
    threads = Path(f"/proc/{agent_pid(bench)}/task").iterdir()
    children = [pid for thread in threads for pid in _text(thread / "children").split()]
    [launcher] = [pid for pid in children if "/jail\0serve" in _text(Path(f"/proc/{pid}/cmdline"))]
    return int(launcher)


def _text(file: Path) -> str:
    """A file of /proc; empty if its thread or process has ended meanwhile."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return file.read_text()
    return ""


def write_through(device: Path, content: bytes) -> None:
    """Write to a device as a guest does, past the host's cache of the device, and have it on the disk."""
    with device.open("r+b", buffering=0) as file:
        assert file.write(content) == len(content)
        os.fsync(file.fileno())


def agent_pid(bench: Bench) -> int:
    """The process id of the bench's agent, which has its runtime folder locked."""
    held = (bench.runtime / "agent.lock").stat()
    mark = f":{held.st_ino} "
    for line in Path("/proc/locks").read_text().splitlines():
        if mark in line:
            return int(line.split()[4])
    raise AssertionError("no agent has the runtime folder")


def host_condition(bench: Bench, kind: str) -> dict[str, object]:
    """The newest condition of that type of the host itself; empty if there is none."""
    statuses = [json.loads(payload) for topic, payload in bench.messages if topic == f"{bench.topics}/status/host"]
    conditions = statuses[-1]["conditions"] if statuses else []
    return next((one for one in conditions if one["type"] == kind), {})


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A control group whose processes have so many bytes together; those that are left in it are killed."""
    folder = Path("/sys/fs/cgroup/memory", f"tapster-test-{os.getpid()}")
    name = "memory.limit_in_bytes"
    if not folder.parent.is_dir():  # version 2
        folder, name = Path("/sys/fs/cgroup") / folder.name, "memory.max"
    try:
        folder.mkdir()
        (folder / name).write_text(str(limit))
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no control group can limit memory here: {error}")
    try:
        yield folder
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        folder.rmdir()


def use_up_memory(group: Path, victim: int) -> None:
    """Have the kernel's out-of-memory killer end a process of the group, as the first that it chooses."""
    Path(f"/proc/{victim}/oom_score_adj").write_text("1000")
    (group / "cgroup.procs").write_text(str(victim))
    words = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0'); x = bytearray(256 << 20)"
    subprocess.run([sys.executable, "-c", words], check=False, capture_output=True)
