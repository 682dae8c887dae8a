"""The store through kills, full disks, damage and a second process: real files, real signals, a real small disk."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from agent.store import Store, Verdict
from agent.store_file import StoreError
from tests.test_store import HOST, in_force, present, rejection

ACCEPTED, STALE = Verdict.ACCEPTED, Verdict.STALE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.db"


CHILD = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from agent.store import Store
    from tests.test_store import present
    store = Store.open(Path(sys.argv[1]))
    for generation in range(1, int(sys.argv[2]) + 1):
        store.accept([present(generation, f"<a n='{generation}'/>")])
        print(generation, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""")


def child(path: Path, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(count)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_was_accepted_survives_a_kill(path: Path) -> None:
    process = child(path, 3)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (-signal.SIGKILL, "1\n2\n3\n"), errors
    assert path.with_name("store.db-wal").stat().st_size > 0
    with Store.open(path) as store:
        assert in_force(store) == {(HOST, "vm1"): present(3, "<a n='3'/>")}
        assert store.accept([present(2)]) == [STALE]


@pytest.mark.parametrize("lines", [1, 20, 150])
def test_a_kill_in_the_middle_of_writing_loses_nothing_that_was_accepted(lines: int, path: Path) -> None:
    with child(path, 1_000_000) as process:
        assert process.stdout is not None
        last = [int(process.stdout.readline()) for _ in range(lines)][-1]
        process.kill()
        last = max([last, *map(int, process.stdout.read().split())])
    with Store.open(path) as store:
        generation = store.load()[0].document.generation
        assert generation is not None
        assert generation in (last, last + 1)
        assert store.check().problems == ()


def test_a_second_process_is_turned_away_and_told_who_has_it(path: Path) -> None:
    with Store.open(path) as store:
        store.accept([present(1)])
        _, errors = child(path, 1).communicate(timeout=120)
        assert f"{path}: the store can't be opened: database is locked by process {os.getpid()}; one agent" in errors
        assert store.accept([present(2)]) == [ACCEPTED]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tapster-test", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs is not allowed here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return ballast


def test_a_full_disk_is_told_and_loses_nothing(small_disk: Path) -> None:
    path = small_disk / "store.db"
    with Store.open(path) as store:
        store.accept([present(1)])
        ballast = fill(small_disk)
        with pytest.raises(StoreError, match="the store can't be written: database or disk is full; free space"):
            store.accept([present(2, f"<a>{'x' * 50_000}</a>"), present(1, guest="vm2")])
        with pytest.raises(StoreError, match="is full"):
            store.reject([rejection(b"x" * 9, guest=f"vm{'x' * 50_000}")])
        assert in_force(store) == {(HOST, "vm1"): present(1)}
        assert store.rejections() == []
        ballast.unlink()
        assert store.accept([present(2), present(1, guest="vm2")]) == [ACCEPTED, ACCEPTED]
    with Store.open(path) as store:
        assert len(store.load()) == 2


@pytest.mark.parametrize("closed", [True, False], ids=["after a clean stop", "after a kill"])
def test_a_start_on_a_full_disk_still_reads_what_is_in_force(closed: bool, small_disk: Path) -> None:
    path = small_disk / "store.db"
    if closed:
        with Store.open(path) as store:
            store.accept([present(1)])
    else:
        child(path, 1).communicate(timeout=120)
    fill(small_disk)
    with Store.open(path) as store:
        assert store.load()[0].document.generation == 1
        with pytest.raises(StoreError, match="is full"):
            store.accept([present(2, f"<a>{'x' * 50_000}</a>")])
        assert store.load()[0].document.generation == 1


def test_a_disk_that_turned_read_only_is_told(small_disk: Path) -> None:
    path = small_disk / "store.db"
    with Store.open(path) as store:
        store.accept([present(1)])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match=rf"{path}: the store can't be opened: {path}: read-only here, or not"):
        Store.open(path)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    with Store.open(path) as store:
        assert len(store.load()) == 1


def scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(4096))


def scribble_over_a_body(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(b"\xff" * 4096)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5000)


def replace_by_text(path: Path) -> None:
    path.write_text("no database " * 1000)


def replace_by_another_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()


def make_newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (scribble, r"malformed|damaged"),
        (scribble_over_a_body, r"the store is damaged: .*; nothing was changed; restore"),
        (cut, r"malformed|damaged"),
        (replace_by_text, r"file is not a database; nothing was changed; restore the file from a backup"),
        (replace_by_another_database, r"this is not a store of tapster; set paths.state to the right folder"),
        (make_newer, r"a newer tapster made this store \(version 99, this one knows \d+\); upgrade tapster"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused_and_left_as_it_is(
    damage: Callable[[Path], None], message: str, path: Path
) -> None:
    with Store.open(path) as store:
        store.accept([present(1, f"<a>{number}</a>", guest=f"vm{number}") for number in range(100)])
        store.accept([present(1, f"<a>{'x' * 50_000}</a>", guest="large")])
    damage(path)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"^{path}: .*({message})"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_body_that_changed_on_the_disk_is_noticed(path: Path) -> None:
    with Store.open(path) as store:
        store.accept([present(1, "<a>precious</a>")])
    path.write_bytes(path.read_bytes().replace(b"precious", b"prefious"))
    with Store.open(path) as store, pytest.raises(StoreError, match="the document of 'vm1' is not what was stored"):
        store.load()


def test_an_empty_file_left_by_a_kill_during_creation_becomes_a_store(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with Store.open(path) as store:
        assert store.accept([present(1)]) == [ACCEPTED]


def test_a_store_whose_making_was_cut_short_becomes_one(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert path.stat().st_size > 0
    with Store.open(path) as store:
        assert store.accept([present(1)]) == [ACCEPTED]


def test_a_folder_in_its_place_and_a_file_in_its_way_are_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the store can't be opened"):
        Store.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file: File exists; check owner, mode and file system"):
        Store.open(tmp_path / "file" / "store.db")
