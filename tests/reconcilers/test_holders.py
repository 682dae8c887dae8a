"""Who has a file open is found by its inode, under any name, on the real /proc."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconcilers.actual import FileId
from reconcilers.holders import DeviceHolders, holders_of_file, holders_of_path, keepers


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image with blanks"
    path.write_bytes(bytes(512))
    return path


@pytest.fixture(params=["ab", "rb"])
def holder(request: pytest.FixtureRequest, image: Path) -> Iterator[tuple[subprocess.Popen[bytes], bool]]:
    with image.open(request.param) as file:
        process = subprocess.Popen(["sleep", "60"], stdin=file)
    yield process, request.param == "ab"
    process.kill()
    process.wait()


def identity(path: Path) -> FileId:
    facts = path.stat()
    return FileId(facts.st_dev, facts.st_ino)


def test_a_holder_is_found_by_path_and_inode(image: Path, holder: tuple[subprocess.Popen[bytes], bool]) -> None:
    process, writes = holder
    words = [f"sleep (pid {process.pid})"]
    assert [str(one) for one in holders_of_path(str(image))] == words
    assert [str(one) for one in holders_of_file(identity(image))] == words
    assert [str(one) for one in holders_of_file(identity(image), writers_only=True)] == (words if writes else [])


def test_other_names_of_the_file_change_nothing(image: Path, holder: tuple[subprocess.Popen[bytes], bool]) -> None:
    process, _ = holder
    link = image.with_name("link")
    link.hardlink_to(image)
    image.unlink()
    assert [one.pid for one in holders_of_file(identity(link))] == [process.pid]


def test_we_are_not_a_holder(image: Path) -> None:
    with image.open("rb"):
        assert holders_of_file(identity(image)) == []
        assert holders_of_path(str(image)) == []


def test_a_file_of_the_same_number_on_another_device_is_another_file(
    image: Path, holder: tuple[subprocess.Popen[bytes], bool]
) -> None:
    facts = image.stat()
    assert holders_of_file(FileId(facts.st_dev + 1, facts.st_ino)) == []


def test_a_device_that_nobody_shows_to_have_is_still_described() -> None:
    assert str(DeviceHolders.of("/dev/loop-that-is-not"))


def test_a_mount_point_that_is_not_utf_8_can_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = tmp_path / os.fsdecode(b"caf\xe9")
    point.mkdir()
    mounting = 'mount -t tmpfs /dev/tapster-test "$1" && echo && exec sleep 60'
    command = ["unshare", "--mount", "sh", "-c", mounting, "sh", str(point)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        monkeypatch.setenv("HOST_PROCESS", f"/proc/{holder.pid}")
        holders = DeviceHolders.of("/dev/tapster-test")
        holder.kill()
    assert str(holders).encode() == rf"mounted on {tmp_path}/caf\xe9".encode()


def test_the_process_of_a_hidden_descriptor_is_passed_over() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie has no descriptors to look at
    assert holders_of_path("/nowhere") == []
    process.wait()


def test_who_only_looks_at_a_device_is_waited_for(tmp_path: Path) -> None:
    answers = iter([False, False, True])
    assert keepers(str(tmp_path / "loop0"), lambda: next(answers)) is None


def test_who_has_a_device_is_found_at_the_first_try(tmp_path: Path) -> None:
    device, tries = tmp_path / "loop0", list[None]()
    device.touch()

    def take_down() -> bool:
        tries.append(None)
        return False

    with device.open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as holder:
        holders = keepers(str(device), take_down)
        holder.kill()
    assert holders
    assert [one.pid for one in holders.processes] == [holder.pid]
    assert len(tries) == 1


def test_who_is_never_found_keeps_it_in_the_end(tmp_path: Path) -> None:
    holders = keepers(str(tmp_path / "loop0"), lambda: False)
    assert holders
    assert not holders.found
