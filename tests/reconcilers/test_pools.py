"""Where sources may be: real files, links, mounts and devices, and somebody who swaps them meanwhile."""

import asyncio
import errno
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reconcilers import abilities
from reconcilers import openat2 as openat2_module
from reconcilers.abilities import probe
from reconcilers.actual import FileId, Source, SourceKind
from reconcilers.errors import DiskError
from reconcilers.jail.launcher import Launcher
from reconcilers.jail.profile import Jail
from reconcilers.openat2 import why_not
from reconcilers.pools import Pools
from reconcilers.reason import Reason
from reconcilers.source import opened, pinned
from reconcilers.spec import Backend

SWAPS = 4000


def look_at(path: str, pools: Pools) -> Source:
    """What a path refers to."""
    with pinned(path, pools) as pin:
        return pin.source


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


def image(path: Path, content: bytes = b"x" * 4096) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refusal(path: Path | str, pools: Pools) -> DiskError:
    with pytest.raises(DiskError) as refused:
        look_at(str(path), pools)
    return refused.value


def reason(path: Path | str, *folders: Path) -> Reason:
    return refusal(path, Pools(folders=folders)).reason


def content(path: Path | str, *folders: Path) -> bytes:
    with pinned(str(path), Pools(folders=folders)) as pin, opened(pin, writable=False) as found:
        return found.read(64, 0)


@contextmanager
def mounted(*words: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *words], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", words[-1]], check=True)


# What is in a pool.


def test_a_file_in_a_pool_and_below_it(pool: Path) -> None:
    for path in (image(pool / "a.img"), image(pool / "deep" / "er" / "b = 'ü'.img")):
        facts = path.stat()
        for spelling in (str(path), f"//{path}", str(path).replace("/pool/", "/pool//./")):
            found = look_at(spelling, Pools(folders=(pool,)))
            assert (found.kind, found.identity) == (SourceKind.FILE, FileId(facts.st_dev, facts.st_ino))


def test_what_is_opened_is_what_was_found(pool: Path) -> None:
    path, other = image(pool / "a.img", b"first" * 200), image(pool / "b.img", b"other" * 200)
    with pinned(str(path), Pools(folders=(pool,))) as pin:
        path.unlink()
        path.symlink_to(other)
        with opened(pin, writable=True) as found:
            assert found.read(5, 0) == b"first"


HOST = """
/ /etc/passwd /etc/shadow /proc/self/mem /proc/self/fd/0 /proc/1/root/etc/shadow /sys/kernel/notes
/dev /dev/mem /dev/null /dev/zero /dev/fd/0 /dev/stdin /dev/shm /dev/../etc/passwd
"""


@pytest.mark.parametrize("path", HOST.split())
def test_nothing_else_of_the_host(pool: Path, path: str) -> None:
    assert reason(path, pool) in {Reason.OUTSIDE_POOLS, Reason.INVALID_SOURCE, Reason.IMAGE_MISSING}


def test_every_way_out_by_name(pool: Path) -> None:
    outside = image(pool.parent / "outside.img")
    image(pool.parent / "pool-of-another" / "a.img")
    for path in (outside, f"{pool}-of-another/a.img", f"{pool.parent}/./outside.img"):
        assert reason(path, pool) is Reason.OUTSIDE_POOLS
    for path in (f"{pool}/../outside.img", f"{pool}/x/../../outside.img", "pool/a.img", "", f"{pool}/a\0b", "."):
        assert reason(path, pool) is Reason.INVALID_SOURCE


def test_no_link_is_followed_wherever_it_leads(pool: Path) -> None:
    inside = image(pool / "folder" / "inside.img")
    outside = image(pool.parent / "outside.img")
    for name, target in {
        "absolute": outside,
        "relative": Path("../outside.img"),
        "inside": inside,
        "magic": Path("/proc/self/fd/0"),
        "process": Path("/proc/self/root/etc/shadow"),
        "dangling": Path("nothing"),
    }.items():
        (pool / name).symlink_to(target)
        assert reason(pool / name, pool) is Reason.OUTSIDE_POOLS, name
    (pool / "up").symlink_to("..")
    (pool / "round").symlink_to("round")
    (pool / "to-folder").symlink_to("folder")
    for path in (pool / "up" / "outside.img", pool / "round" / "a", pool / "to-folder" / "inside.img"):
        assert reason(path, pool) is Reason.OUTSIDE_POOLS


def test_what_is_no_regular_file(pool: Path) -> None:
    os.mkfifo(pool / "fifo")
    os.mknod(pool / "null", 0o600 | 0o020000, os.makedev(1, 3))
    os.mknod(pool / "loop0", 0o600 | 0o060000, os.makedev(7, 0))
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(pool / "socket"))
    for name in ("fifo", "null", "loop0", "socket", "."):
        assert reason(pool / name, pool) is Reason.NOT_AN_IMAGE, name
    every = Pools(folders=(pool,), devices=("/dev/*", "/dev/*/*"))
    assert (
        refusal(pool / "loop0", every).reason is Reason.NOT_AN_IMAGE
    )  # in a pool a node is somebody's who writes there


@pytest.mark.parametrize(("mode", "refused"), [(0o4755, True), (0o2711, True), (0o2600, False), (0o600, False)])
def test_no_program_that_a_guest_would_write_runs_as_root(pool: Path, mode: int, refused: bool) -> None:
    path = image(pool / "program")
    path.chmod(mode)
    if refused:
        assert reason(path, pool) is Reason.NOT_AN_IMAGE
    else:
        look_at(str(path), Pools(folders=(pool,)))


def test_further_names_of_a_file_only_if_allowed(pool: Path) -> None:
    secret = image(pool.parent / "secret")
    (pool / "a.img").hardlink_to(secret)
    error = refusal(pool / "a.img", Pools(folders=(pool,)))
    assert error.reason is Reason.HARD_LINKED
    assert "2 names" in error.message
    look_at(str(pool / "a.img"), Pools(folders=(pool,), hard_links=True))
    secret.unlink()
    look_at(str(pool / "a.img"), Pools(folders=(pool,)))


@pytest.mark.parametrize("size", [0, 1, 511])
def test_what_is_too_small(pool: Path, size: int) -> None:
    expected = Reason.IMAGE_TOO_SMALL if size else Reason.IMAGE_EMPTY
    assert reason(image(pool / "a.img", b"x" * size), pool) is expected


def test_long_names(pool: Path) -> None:
    for path in (pool / ("a" * 256), f"{pool}/{'a/' * 3000}b"):
        assert reason(path, pool) is Reason.IMAGE_MISSING


def test_the_agents_own_folders_are_no_images(pool: Path) -> None:
    image(pool / "state" / "store.sqlite")
    image(pool / "state" / "images" / "a.img")
    (pool.parent / "link").symlink_to(pool)
    private = (pool / "state",)
    assert (
        refusal(pool / "state" / "store.sqlite", Pools(folders=(pool,), private=private)).reason is Reason.OUTSIDE_POOLS
    )
    by_link = Pools(folders=(pool.parent / "link",), private=private)
    assert refusal(pool.parent / "link" / "state" / "store.sqlite", by_link).reason is Reason.OUTSIDE_POOLS
    look_at(str(pool / "state" / "images" / "a.img"), Pools(folders=(pool / "state" / "images",), private=private))


# Pools.


def test_a_missing_pool_is_named_and_hides_no_other(pool: Path) -> None:
    path = image(pool / "a.img")
    missing = pool.parent / "missing"
    error = refusal(missing / "a.img", Pools(folders=(pool, missing)))
    assert error.reason is Reason.IMAGE_MISSING
    assert f"image pool {missing}" in error.message
    assert content(path, missing, pool)[:1] == b"x"


def test_a_pool_may_be_the_operators_link(pool: Path) -> None:
    image(pool / "a.img", b"behind the link" * 100)
    (pool.parent / "link").symlink_to(pool)
    assert content(pool.parent / "link" / "a.img", pool.parent / "link").startswith(b"behind the link")
    assert reason(pool / "a.img", pool.parent / "link") is Reason.OUTSIDE_POOLS


def test_a_pool_in_a_pool_is_no_link_of_whoever_writes_there(pool: Path) -> None:
    inner = pool / "tenant"
    image(inner / "a.img", b"tenant" * 100)
    assert content(inner / "a.img", pool, inner).startswith(b"tenant")
    inner.rename(pool / "away")
    image(pool.parent / "etc" / "a.img", b"secret" * 100)
    inner.symlink_to(pool.parent / "etc")
    assert reason(inner / "a.img", pool, inner) is Reason.OUTSIDE_POOLS
    inner.unlink()
    inner.symlink_to("away")
    assert reason(inner / "a.img", inner, pool) is Reason.OUTSIDE_POOLS


def test_another_mount_is_a_pool_of_its_own(pool: Path) -> None:
    mount = pool / "mount"
    mount.mkdir()
    elsewhere = image(pool.parent / "elsewhere" / "a.img", b"elsewhere" * 100).parent
    with mounted("--bind", elsewhere, mount):
        error = refusal(mount / "a.img", Pools(folders=(pool,)))
        assert error.reason is Reason.OUTSIDE_POOLS
        assert "add the mount point to images.pools" in error.message
        assert content(mount / "a.img", pool, mount).startswith(b"elsewhere")
        assert content(mount / "a.img", mount).startswith(b"elsewhere")
    with mounted("-t", "proc", "proc", mount):
        assert reason(mount / "self" / "mem", pool) is Reason.OUTSIDE_POOLS
    file = image(pool / "b.img")
    with mounted("--bind", "/etc/passwd", file):
        assert reason(file, pool) is Reason.OUTSIDE_POOLS


# Block devices.


@pytest.fixture
def device(host_parts: None, pool: Path) -> Iterator[str]:
    command = ["losetup", "--show", "-f", str(image(pool / "device.img", bytes(1 << 20)))]
    node = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    yield node
    subprocess.run(["losetup", "-d", node], check=True)


def test_block_devices_by_what_the_kernel_calls_them(pool: Path, device: str) -> None:
    def allowed(path: str, *patterns: str) -> bool:
        try:
            return look_at(path, Pools(folders=(pool,), devices=patterns)).kind is SourceKind.BLOCK
        except DiskError as refused:
            return refused.reason is not Reason.DEVICE_NOT_ALLOWED

    alias = f"/dev/tapster-{os.getpid()}-alias"
    os.mknod(alias, 0o600 | 0o060000, os.stat(device).st_rdev)  # noqa: PTH116
    link = Path(f"/dev/tapster-{os.getpid()}-link")
    link.symlink_to(Path(device).name)
    try:
        assert not allowed(device)
        for name in (device, alias, str(link)):
            assert allowed(name, device)
            assert allowed(name, "/dev/loop*")
            assert not allowed(name, "/dev/sd*")
            assert not allowed(name, "/dev/tapster-*")
            assert not allowed(name, "/dev/*/*")
    finally:
        link.unlink()
        Path(alias).unlink()


def test_a_link_out_of_dev_and_a_node_of_nothing(pool: Path, device: str) -> None:
    every = Pools(folders=(pool,), devices=("/dev/*",))
    link, hollow = Path(f"/dev/tapster-{os.getpid()}-out"), Path(f"/dev/tapster-{os.getpid()}-hollow")
    link.symlink_to(image(pool / "a.img"))
    os.mknod(hollow, 0o600 | 0o060000, os.makedev(250, 99))
    try:
        assert refusal(link, every).reason is Reason.OUTSIDE_POOLS
        assert refusal(hollow, every).reason is Reason.IMAGE_MISSING
    finally:
        link.unlink()
        hollow.unlink()


# Somebody who swaps things meanwhile.


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[None]:
    """Two names change places as fast as it goes (renameat2(2), RENAME_EXCHANGE)."""
    program = f"""
import ctypes, os
libc = ctypes.CDLL(None)
one, other = os.fsencode({str(one)!r}), os.fsencode({str(other)!r})
print("go", flush=True)
while True:
    libc.renameat2(-100, one, -100, other, 2)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def outcome(path: Path, pool: Path) -> bytes | Reason:
    try:
        return content(path, pool)[:6]
    except DiskError as refused:
        return refused.reason


def test_no_swap_leads_out_of_the_pool(pool: Path) -> None:
    """A link is swapped in for the image and for a folder on the way. realpath-then-open loses this now and then."""
    image(pool / "folder" / "a.img", b"inside" * 100)
    image(pool.parent / "outside" / "a.img", b"SECRET" * 100)
    (pool / "link").symlink_to(pool.parent / "outside")
    image(pool / "b.img", b"inside" * 100)
    (pool / "b.link").symlink_to(pool.parent / "outside" / "a.img")
    paths = (pool / "folder" / "a.img", pool / "b.img")
    with swapping(pool / "folder", pool / "link"), swapping(pool / "b.img", pool / "b.link"):
        seen = Counter(outcome(paths[number % 2], pool) for number in range(SWAPS))
    assert seen.keys() == {b"inside", Reason.OUTSIDE_POOLS}, seen


# The kernel.


def test_a_kernel_that_can_not_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not() is None
    monkeypatch.setattr(openat2_module, "_OPENAT2", 9999)
    assert os.strerror(errno.ENOSYS) in (why_not() or "")
    with pytest.raises(DiskError) as refused:
        asyncio.run(probe([], [], frozenset(), Jail.REQUIRE, Launcher()))
    assert refused.value.reason is Reason.BACKEND_UNAVAILABLE
    assert "5.15" in refused.value.message


def test_on_a_kernel_that_tells_too_little_nothing_is_brought_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abilities, "why_unfit", lambda: "the kernel does not tell")
    missing = asyncio.run(probe([], [], frozenset(), Jail.REQUIRE, Launcher())).missing
    assert missing == dict.fromkeys(Backend, "the kernel does not tell")
