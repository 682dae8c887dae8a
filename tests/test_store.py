"""The store: its verdicts, what it remembers, and that it does so through kills, full disks and damage."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.definition import Finding
from agent.document import DesiredDocument, Scope, digest
from agent.store import Rejection, Store, Verdict
from agent.store_file import StoreError
from reconcilers.reason import Reason

HOST, GROUP = Scope("host", "db1"), Scope("group", "web")
ACCEPTED, UNCHANGED, STALE, CONFLICT = Verdict.ACCEPTED, Verdict.UNCHANGED, Verdict.STALE, Verdict.CONFLICT


def present(generation: int | None, xml: str = "<a/>", guest: str = "vm1", scope: Scope = HOST) -> DesiredDocument:
    body = xml.encode()
    sha256 = digest(f"{generation} {xml}".encode())
    return DesiredDocument(scope=scope, guest=guest, generation=generation, state="present", sha256=sha256, body=body)


def absent(generation: int | None) -> DesiredDocument:
    return replace(present(generation, "absent"), state="absent", body=b"")


def rejection(payload: bytes = b"<", guest: str = "vm1", at: int = 0) -> Rejection:
    findings = [Finding(Reason.MALFORMED_XML, "no end tag", "", 3), Finding(Reason.TOO_DEEP, "too deep", "/a", None)]
    moment = datetime(2026, 1, 1, 0, 0, at, tzinfo=UTC)
    return replace(Rejection.of(payload, findings, scope=HOST, guest=guest), at=moment)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as opened:
        yield opened


def in_force(store: Store) -> dict[tuple[Scope, str], DesiredDocument]:
    return {(one.document.scope, one.document.guest): one.document for one in store.load()}


@pytest.mark.parametrize(
    ("documents", "verdicts"),
    [
        ([present(1)], [ACCEPTED]),
        ([present(1), present(1)], [ACCEPTED, UNCHANGED]),
        ([present(1), present(2)], [ACCEPTED, ACCEPTED]),
        ([present(2), present(1)], [ACCEPTED, STALE]),
        ([present(2), present(1, "<b/>")], [ACCEPTED, STALE]),
        ([present(1), present(1, "<b/>")], [ACCEPTED, CONFLICT]),
        ([present(1), present(1, "<b/>"), present(1)], [ACCEPTED, CONFLICT, UNCHANGED]),
        ([present(1), absent(1)], [ACCEPTED, CONFLICT]),
        ([present(1), absent(2), present(1)], [ACCEPTED, ACCEPTED, STALE]),
        ([absent(2), present(2)], [ACCEPTED, CONFLICT]),
        ([present(None), present(None)], [ACCEPTED, UNCHANGED]),
        ([present(None), present(None, "<b/>"), present(None)], [ACCEPTED, ACCEPTED, ACCEPTED]),
        ([present(5), present(None, "<b/>"), present(4)], [ACCEPTED, ACCEPTED, STALE]),
        ([present(5), present(None, "<b/>"), present(5, "<b/>")], [ACCEPTED, ACCEPTED, CONFLICT]),
        ([present(5), present(None, "<b/>"), present(5)], [ACCEPTED, ACCEPTED, ACCEPTED]),
        ([present(None), present(0)], [ACCEPTED, ACCEPTED]),
        ([present(2), present(1, guest="vm2"), present(1, scope=GROUP)], [ACCEPTED, ACCEPTED, ACCEPTED]),
        ([present(1), replace(present(1), sha256="same XML in JSON")], [ACCEPTED, ACCEPTED]),
    ],
)
@pytest.mark.parametrize("together", [True, False], ids=["one transaction", "restart between"])
def test_verdicts(documents: list[DesiredDocument], verdicts: list[Verdict], together: bool, path: Path) -> None:
    if together:
        with Store.open(path) as store:
            assert store.accept(documents) == verdicts
    else:
        for document, verdict in zip(documents, verdicts, strict=True):
            with Store.open(path) as store:
                assert store.judge(document) is verdict
                assert store.accept([document]) == [verdict]
    expected = {
        (one.scope, one.guest): one for one, verdict in zip(documents, verdicts, strict=True) if verdict is ACCEPTED
    }
    with Store.open(path) as store:
        assert in_force(store) == expected


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.builds(
            present, st.none() | st.integers(0, 3), st.sampled_from(["<a/>", "<b/>"]), st.sampled_from(["v", "w"])
        )
    )
)
def test_the_same_is_in_force_however_the_documents_are_batched(documents: list[DesiredDocument]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(Path(folder, "one")) as one,
        Store.open(Path(folder, "many")) as many,
    ):
        assert one.accept(documents) == [verdict for document in documents for verdict in many.accept([document])]
        assert in_force(one) == in_force(many)
        counted = [document.generation for document in documents if document.generation is not None]
        if counted:
            highest = next(document for document in documents if document.generation == max(counted))
            lower = [replace(highest, generation=number) for number in range(max(counted))]
            assert set(one.accept(lower)) <= {STALE}


def test_a_batch_that_fails_half_way_is_undone_and_the_store_goes_on(store: Store) -> None:
    with pytest.raises(OverflowError):
        store.accept([present(1), present(2**63, guest="vm2")])
    assert in_force(store) == {}
    assert store.accept([present(1)]) == [ACCEPTED]


def test_redelivery_writes_nothing(store: Store) -> None:
    documents = [present(number % 3 or None, guest=f"vm{number}") for number in range(1000)]
    store.accept(documents)
    store.reject([rejection(guest="bad")])
    before = store._connection.total_changes
    assert set(store.accept(documents)) == {UNCHANGED}
    store.reject([rejection(guest="bad", at=9)])
    store.withdraw([(HOST, "never seen")])
    assert store._connection.total_changes == before


def test_a_rejection_stands_beside_the_last_good_document_until_a_good_one_comes(path: Path) -> None:
    with Store.open(path) as store:
        store.accept([present(1)])
        store.reject([rejection(at=1)])
    with Store.open(path) as store:
        store.reject([rejection(at=2)])
        (stored,) = store.load()
        assert (stored.document, stored.rejection) == (present(1), rejection(at=1))
        assert store.accept([present(1)]) == [ACCEPTED]
        assert store.load()[0].rejection is None
    with Store.open(path) as store:
        assert store.rejections() == []


def test_a_conflict_does_not_end_a_rejection(store: Store) -> None:
    store.accept([present(1)])
    store.reject([rejection()])
    assert store.accept([present(1, "<b/>")]) == [CONFLICT]
    assert store.load()[0].rejection == rejection()


def test_the_latest_rejection_is_kept_for_a_guest_that_was_never_accepted(path: Path) -> None:
    with Store.open(path) as store:
        store.reject([rejection(b"1"), rejection(b"2")])
        store.reject([rejection(b"3")])
    with Store.open(path) as store:
        assert store.load() == []
        assert store.rejections() == [rejection(b"3")]


def test_a_reason_of_a_newer_version_does_not_keep_an_older_one_from_starting(path: Path) -> None:
    with Store.open(path) as store:
        store.reject([rejection()])
        store._connection.execute("UPDATE rejection SET reason = 'MadeLater'")
    with Store.open(path) as store:
        assert store.rejections()[0].reason is Reason.INVALID_DOCUMENT


def test_withdrawn_stays_in_force_until_accepted_again(path: Path) -> None:
    with Store.open(path) as store:
        store.accept([present(1), present(1, guest="vm2")])
        store.reject([rejection(), rejection(guest="bad")])
        store.withdraw([(HOST, "vm1"), (HOST, "bad")])
    with Store.open(path) as store:
        assert [(one.document.guest, one.withdrawn) for one in store.load()] == [("vm1", True), ("vm2", False)]
        assert store.rejections() == []
        assert store.check().withdrawn == 1
        assert store.accept([present(1)]) == [ACCEPTED]
        assert not store.load()[0].withdrawn


def test_health_counts_what_is_there(store: Store, path: Path) -> None:
    store.accept([present(1), present(1, guest="vm2"), replace(absent(1), guest="vm3")])
    store.reject([rejection()])
    health = store.check()
    assert (health.present, health.absent, health.withdrawn, health.rejected) == (2, 1, 0, 1)
    assert health.path == path
    assert health.size_bytes > 0
    assert health.problems == ()


def test_only_the_owner_may_read_it(store: Store, path: Path) -> None:
    store.accept([present(1)])
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_commits_reach_the_disk(store: Store) -> None:
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)


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
    output, errors = process.communicate(timeout=30)
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
        _, errors = child(path, 1).communicate(timeout=30)
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
        child(path, 1).communicate(timeout=30)
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
        (make_newer, r"a newer tapster made this store \(version 99, this one knows 1\); upgrade tapster"),
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


def test_a_folder_in_its_place_and_a_file_in_its_way_are_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the store can't be opened"):
        Store.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file: File exists; check owner, mode and file system"):
        Store.open(tmp_path / "file" / "store.db")
