"""Stable paths: all of them can be told while some come and go."""

import threading
from pathlib import Path

from reconcilers.spec import DiskKey
from reconcilers.stable_path import StablePaths


def test_links_are_told_and_nothing_else_is(tmp_path: Path) -> None:
    paths = StablePaths(tmp_path)
    paths.point(DiskKey("vm1", "vda"), "/dev/loop1")
    (tmp_path / "vm1" / "notes").write_text("somebody's")
    (tmp_path / "notes").write_text("somebody's")
    (tmp_path / "vm1" / ".vdb.new").symlink_to("/dev/loop2")
    assert paths.all() == {DiskKey("vm1", "vda"): "/dev/loop1"}
    assert StablePaths(tmp_path / "none").all() == {}


def test_links_that_go_meanwhile_do_no_harm(tmp_path: Path) -> None:
    paths, over = StablePaths(tmp_path), threading.Event()
    keys = [DiskKey(f"vm{number}", "vda") for number in range(100)]

    def churn() -> None:
        while not over.is_set():
            for key in keys:
                paths.point(key, "/dev/loop1")
            for key in keys:
                paths.remove(key)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(100):
            assert set(paths.all()) <= set(keys)
    finally:
        over.set()
        thread.join()
