"""The store: its verdicts and what it remembers."""

import stat
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.definition import Finding
from agent.document import DesiredDocument, Scope, digest
from agent.rejection import Rejection
from agent.store import Store, Verdict
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
