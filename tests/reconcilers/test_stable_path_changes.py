"""The links that hypervisors are given: there or not, never half, never somebody else's."""

import threading
from pathlib import Path

import pytest

from reconcilers.spec import DiskKey
from reconcilers.stable_path import StablePaths

KEY = DiskKey("vm 1", "vda")


@pytest.fixture
def paths(tmp_path: Path) -> StablePaths:
    return StablePaths(tmp_path / "disks")


def test_a_link_appears_changes_and_goes(paths: StablePaths) -> None:
    assert paths.read(KEY) is None
    for device in ("/dev/loop1", "/dev/loop2"):
        paths.point(KEY, device)
        assert paths.read(KEY) == device
        assert paths.all() == {KEY: device}
    paths.remove(KEY)
    paths.remove(KEY)
    assert paths.read(KEY) is None
    assert not paths.path(KEY).parent.exists()


def test_the_folder_stays_while_another_disk_is_in_it(paths: StablePaths) -> None:
    other = DiskKey(KEY.guest, "vdb")
    for key in (KEY, other):
        paths.point(key, "/dev/loop1")
    paths.remove(KEY)
    assert paths.all() == {other: "/dev/loop1"}


def test_what_a_crash_left_is_no_disk_and_in_nobodys_way(paths: StablePaths) -> None:
    paths.path(KEY).parent.mkdir(parents=True)
    draft = paths.path(KEY).with_name(".vda.new")
    draft.symlink_to("/dev/loop1")
    assert paths.all() == {}
    paths.point(KEY, "/dev/loop2")
    assert paths.all() == {KEY: "/dev/loop2"}
    assert not draft.is_symlink()


def test_a_reader_sees_the_old_device_or_the_new_one(paths: StablePaths) -> None:
    paths.point(KEY, "/dev/loop0")
    seen: set[str | None] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(paths.read(KEY))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(500):
        paths.point(KEY, f"/dev/loop{number % 2}")
    stop.set()
    reader.join()
    assert seen <= {"/dev/loop0", "/dev/loop1"}


def test_disks_of_one_guest_come_and_go_at_the_same_time(paths: StablePaths) -> None:
    failures: list[BaseException] = []

    def flap(key: DiskKey) -> None:
        try:
            for _ in range(300):
                paths.point(key, "/dev/loop1")
                paths.remove(key)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=flap, args=(DiskKey("vm", f"vd{letter}"),)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert paths.all() == {}
