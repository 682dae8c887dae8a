"""The durable record of what operators want: one SQLite file, synced before a document counts as accepted.

It answers two questions after any crash: which documents are in force, and which generation was the highest seen of
each, so that a broker that forgot can't bring an old definition back. Nothing is ever deleted from it but a
rejection that a newer attempt overtook.

One process has the file at a time, and one thread of it; SQLite's own check turns other threads away.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from agent.document import DesiredDocument, Scope
from agent.rejection import Rejection
from agent.status import now
from agent.store_file import DAMAGED, StoreError, explained, open_file, quick_check
from agent.trust.policy import TrustRecord

_SELECT_RECORDS = """
    SELECT scope_kind, scope_name, guest, generation, sha256, withdrawn, high_water, high_water_content,
           signers <> '' FROM document
"""
_SELECT_DOCUMENTS = """
    SELECT scope_kind, scope_name, guest, generation, state, sha256, content, accepted_at, withdrawn, body,
           signers
    FROM document ORDER BY scope_kind, scope_name, guest
"""
_SELECT_REJECTIONS = "SELECT scope_kind, scope_name, guest, sha256, reason, message, findings, at FROM rejection"
_SELECT_TRUST = "SELECT version, statement, root FROM trust"
_REPLACE_TRUST = "INSERT OR REPLACE INTO trust (one, version, statement, root) VALUES (1, ?, ?, ?)"
_COUNT_DOCUMENTS = """
    SELECT count(*) FILTER (WHERE state = 'present'), count(*) FILTER (WHERE state = 'absent'),
           count(*) FILTER (WHERE withdrawn) FROM document
"""
_REPLACE_DOCUMENT = """
    INSERT OR REPLACE INTO document (scope_kind, scope_name, guest, generation, state, sha256, content, accepted_at,
                                     high_water, high_water_content, body, signers)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_REPLACE_REJECTION = "INSERT OR REPLACE INTO rejection VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_WITHDRAW_DOCUMENT = "UPDATE document SET withdrawn = 1 WHERE (scope_kind, scope_name, guest) = (?, ?, ?)"
_DELETE_REJECTION = "DELETE FROM rejection WHERE (scope_kind, scope_name, guest) = (?, ?, ?)"

Key = tuple[Scope, str]
"""Names one document: its scope and its guest."""


class Verdict(StrEnum):
    """What the record says to a document that arrived."""

    ACCEPTED = "accepted"
    UNCHANGED = "unchanged"
    STALE = "stale"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """The document in force for a scope and guest; an absent one is kept, so that its generation is.

    Attributes:
        document: What was accepted last.
        accepted_at: When.
        withdrawn: The topic was emptied since; the document stays in force.
        rejection: A later attempt that was turned away.
    """

    document: DesiredDocument
    accepted_at: datetime
    withdrawn: bool
    rejection: Rejection | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreHealth:
    """What `tapster doctor` tells of the store. `problems` holds SQLite's own findings, empty when it is sound."""

    path: Path
    size_bytes: int
    present: int
    absent: int
    withdrawn: int
    rejected: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Record:
    """What is remembered of a document in memory, enough to judge the next one without a query."""

    generation: int | None
    sha256: str
    withdrawn: bool
    high_water: int | None
    high_water_content: str | None
    signed: bool

    def judge(self, document: DesiredDocument, *, rejected: bool) -> Verdict:
        """Compare by the rules of design §3. Pure."""
        if document.generation is not None and self.high_water is not None:
            if document.generation < self.high_water:
                return Verdict.STALE
            if document.generation == self.high_water and document.content != self.high_water_content:
                return Verdict.CONFLICT
        same = (document.generation, document.sha256) == (self.generation, self.sha256)
        return Verdict.UNCHANGED if same and not self.withdrawn and not rejected else Verdict.ACCEPTED

    def after(self, document: DesiredDocument) -> "_Record":
        """The record once the document was accepted; one without a generation leaves the high-water mark."""
        counted = document.generation is not None
        return _Record(
            generation=document.generation,
            sha256=document.sha256,
            withdrawn=False,
            high_water=document.generation if counted else self.high_water,
            high_water_content=document.content if counted else self.high_water_content,
            signed=bool(document.signers),
        )


_NOTHING = _Record(None, "", False, None, None, False)


class Store:
    """The open store. Use it as a context manager, all from one thread."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._records = {_key(row): _Record(*row[3:]) for row in connection.execute(_SELECT_RECORDS)}
        self._rejected = {_key(row): Rejection.from_row(row) for row in connection.execute(_SELECT_REJECTIONS)}
        self._signed = {guest for (_, guest), record in self._records.items() if record.signed}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the store, or create it and its folder; bring an older file up to this version.

        Args:
            path: The SQLite file. A `-wal` file stands beside it while it is open, and belongs to it.

        Raises:
            StoreError: Another process has it, it can't be created or read, it is damaged, it is of a newer version,
                or it is something else. No document is touched then.
        """
        connection = open_file(path)
        try:
            with explained(path, "the store can't be read"):
                return cls(path, connection)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go. Everything was durable before."""
        self._connection.close()

    def __len__(self) -> int:
        """How many documents and rejections are on record."""
        return len(self._records) + len(self._rejected)

    def knows(self, scope: Scope, guest: str) -> bool:
        """Whether anything is on record about a guest in a scope."""
        return (scope, guest) in self._records or (scope, guest) in self._rejected

    def knows_signed(self, guest: str) -> bool:
        """Whether a signed document of the guest is on record, in whatever scope."""
        return guest in self._signed

    def judge(self, document: DesiredDocument) -> Verdict:
        """What `accept` would say to the document now. Answers from memory and writes nothing."""
        key = (document.scope, document.guest)
        return self._records.get(key, _NOTHING).judge(document, rejected=key in self._rejected)

    def accept(self, documents: Sequence[DesiredDocument]) -> list[Verdict]:
        """Put documents on record, in order of arrival, in one transaction.

        A document that is accepted ends its topic's withdrawal and its standing rejection. One that is not changes
        nothing. When all are unchanged, nothing is written.

        Returns:
            A verdict for each document. The accepted ones are on the disk.

        Raises:
            StoreError: The file can't be written. None of the documents was accepted.
        """
        verdicts: list[Verdict] = []
        accepted: dict[Key, tuple[_Record, DesiredDocument]] = {}
        for document in documents:
            key = (document.scope, document.guest)
            record = accepted[key][0] if key in accepted else self._records.get(key, _NOTHING)
            standing = key in self._rejected and key not in accepted
            verdicts.append(verdict := record.judge(document, rejected=standing))
            if verdict is Verdict.ACCEPTED:
                accepted[key] = (record.after(document), document)
        if accepted:
            with self._transaction() as connection:
                connection.executemany(_REPLACE_DOCUMENT, [_row(*pair) for pair in accepted.values()])
                settled = accepted.keys() & self._rejected.keys()
                connection.executemany(_DELETE_REJECTION, [_columns(key) for key in settled])
            for key, (record, _) in accepted.items():
                self._records[key] = record
                self._rejected.pop(key, None)
            self._signed |= {guest for (_, guest), (record, _) in accepted.items() if record.signed}
        return verdicts

    def reject(self, rejections: Sequence[Rejection]) -> None:
        """Remember attempts that were turned away; what is in force stays. One seen before is not written again.

        Raises:
            StoreError: The file can't be written.
        """
        fresh = {(one.scope, one.guest): one for one in rejections}
        fresh = {key: one for key, one in fresh.items() if not one.repeats(self._rejected.get(key))}
        if fresh:
            with self._transaction() as connection:
                connection.executemany(_REPLACE_REJECTION, [one.row for one in fresh.values()])
            self._rejected |= fresh

    def withdraw(self, keys: Sequence[Key]) -> None:
        """Note that topics were emptied. Their documents stay in force; rejections of what stood there end.

        Raises:
            StoreError: The file can't be written.
        """
        known = [key for key in keys if key in self._records and not self._records[key].withdrawn]
        turned_away = [key for key in keys if key in self._rejected]
        if known or turned_away:
            with self._transaction() as connection:
                connection.executemany(_WITHDRAW_DOCUMENT, [_columns(key) for key in known])
                connection.executemany(_DELETE_REJECTION, [_columns(key) for key in turned_away])
            for key in known:
                self._records[key] = replace(self._records[key], withdrawn=True)
            for key in turned_away:
                self._rejected.pop(key, None)

    def load(self) -> list[StoredDocument]:
        """Every document in force, absent ones included, ordered by scope and guest.

        Raises:
            StoreError: The file can't be read, or a document in it is not what was stored.
        """
        with explained(self.path, "the store can't be read"):
            rows = self._connection.execute(_SELECT_DOCUMENTS).fetchall()
        return [self._stored(row) for row in rows]

    def rejections(self) -> list[Rejection]:
        """Every standing rejection, those of guests without a document in force included."""
        return list(self._rejected.values())

    def trust(self) -> TrustRecord | None:
        """The highest trust statement that was followed.

        Raises:
            StoreError: The file can't be read.
        """
        with explained(self.path, "the store can't be read"):
            row = self._connection.execute(_SELECT_TRUST).fetchone()
        return TrustRecord(*row) if row else None

    def keep_trust(self, record: TrustRecord) -> None:
        """Remember the highest trust statement that was followed.

        Raises:
            StoreError: The file can't be written.
        """
        with self._transaction() as connection:
            connection.execute(_REPLACE_TRUST, (record.version, record.statement, record.root))

    def check(self) -> StoreHealth:
        """Look the whole file over.

        Raises:
            StoreError: The file can't be read.
        """
        with explained(self.path, "the store can't be read"):
            present, absent, withdrawn = self._connection.execute(_COUNT_DOCUMENTS).fetchone()
            problems = quick_check(self._connection)
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return StoreHealth(
            path=self.path,
            size_bytes=sum(file.stat().st_size for file in files if file.exists()),
            present=present,
            absent=absent,
            withdrawn=withdrawn,
            rejected=len(self._rejected),
            problems=problems,
        )

    def _stored(self, row: tuple[Any, ...]) -> StoredDocument:
        key, (generation, state, sha256, content, accepted_at, withdrawn, body, signers) = _key(row), row[3:]
        scope, guest = key
        document = DesiredDocument(
            scope=scope,
            guest=guest,
            generation=generation,
            state=state,
            sha256=sha256,
            body=body,
            signers=tuple(signers.split()),
        )
        if document.content != content:
            raise StoreError(f"{self.path}: the document of {guest!r} is not what was stored; {DAMAGED}")
        return StoredDocument(
            document=document,
            accepted_at=datetime.fromisoformat(accepted_at),
            withdrawn=bool(withdrawn),
            rejection=self._rejected.get(key),
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with explained(self.path, "the store can't be written"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _columns(key: Key) -> tuple[str, str, str]:
    scope, guest = key
    return scope.kind, scope.name, guest


def _key(row: tuple[Any, ...]) -> Key:
    kind, name, guest = row[:3]
    return Scope(kind, name), guest


def _row(record: _Record, document: DesiredDocument) -> tuple[object, ...]:
    return (
        *_columns((document.scope, document.guest)),
        document.generation,
        document.state,
        document.sha256,
        document.content,
        now().isoformat(),
        record.high_water,
        record.high_water_content,
        document.body,
        " ".join(document.signers),
    )
