"""The tree of another process taken for the host's, as an agent with mounts of its own takes that of PID 1."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconcilers.host_tree import VARIABLE
from reconcilers.mounts import is_mount_point
from reconcilers.pools import Pools
from reconcilers.source import opened, pinned

IN_ITS_TREE = """\
mount -t tmpfs mine "$0/pool"
printf %4096s theirs >"$0/pool/a.img"
ln -s "$0/pool" "$0/pool/link"
echo ready
exec sleep 600
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a pool in it, of which another process has another one mounted over it."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.img").write_bytes(b"ours".rjust(4096))
    (tmp_path / "pool" / "link").symlink_to("/nowhere")
    other = subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-euc", IN_ITS_TREE, tmp_path], stdout=subprocess.PIPE
    )
    try:
        assert other.stdout
        assert other.stdout.readline() == b"ready\n"
        monkeypatch.setenv(VARIABLE, f"/proc/{other.pid}")
        yield tmp_path
    finally:
        other.kill()
        other.communicate()


def content(path: Path) -> bytes:
    with pinned(str(path), Pools(folders=(path.parent,))) as pin, opened(pin, writable=False) as found:
        return found.read(4096, 0).strip()


def test_images_are_those_of_the_host(tree: Path) -> None:
    assert content(tree / "pool" / "a.img") == b"theirs"


def test_a_link_on_the_way_to_a_pool_leads_where_it_does_on_the_host(tree: Path) -> None:
    assert content(tree / "pool" / "link" / "a.img") == b"theirs"


def test_mounts_are_those_of_the_host(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_mount_point(tree / "pool")
    monkeypatch.delenv(VARIABLE)
    assert not is_mount_point(tree / "pool")
    assert content(tree / "pool" / "a.img") == b"ours"
