"""The SQLite file beneath the store: created, locked, checked, brought up to date, and its errors explained.

The file is in WAL mode with an exclusive lock, taken before the first access. So a second process is turned away,
and there is no shared-memory file, which a full disk would keep us from making: documents can still be read then.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_APPLICATION_ID = int.from_bytes(b"tpst")

_MIGRATIONS = (
    """
    CREATE TABLE document (
        scope_kind         TEXT    NOT NULL CHECK (scope_kind IN ('host', 'group')),
        scope_name         TEXT    NOT NULL,
        guest              TEXT    NOT NULL,
        generation         INTEGER,
        state              TEXT    NOT NULL CHECK (state IN ('present', 'absent')),
        sha256             TEXT    NOT NULL,
        content            TEXT    NOT NULL,
        accepted_at        TEXT    NOT NULL,
        withdrawn          INTEGER NOT NULL DEFAULT 0 CHECK (withdrawn IN (0, 1)),
        high_water         INTEGER,
        high_water_content TEXT,
        body               BLOB    NOT NULL,
        PRIMARY KEY (scope_kind, scope_name, guest)
    ) STRICT;
    CREATE TABLE rejection (
        scope_kind TEXT NOT NULL CHECK (scope_kind IN ('host', 'group')),
        scope_name TEXT NOT NULL,
        guest      TEXT NOT NULL,
        sha256     TEXT NOT NULL,
        reason     TEXT NOT NULL,
        message    TEXT NOT NULL,
        findings   TEXT NOT NULL,
        at         TEXT NOT NULL,
        PRIMARY KEY (scope_kind, scope_name, guest)
    ) STRICT;
    """,
    """
    ALTER TABLE document ADD COLUMN signers TEXT NOT NULL DEFAULT '';
    CREATE TABLE trust (
        one       INTEGER PRIMARY KEY CHECK (one = 1),
        version   INTEGER NOT NULL,
        statement BLOB    NOT NULL,
        root      TEXT    NOT NULL
    ) STRICT;
    """,
)
"""Step n brings a file of version n to n + 1. Never edit one that was released: add the next."""

DAMAGED = "nothing was changed; restore the file from a backup, or move it away and have every definition pushed again"
"""What to do about a file that can't be trusted. It is never moved or mended behind the operator's back."""

_REMEDIES = {
    sqlite3.SQLITE_FULL: "free space on its file system; what was stored before is kept",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable for the agent; what was stored before is kept",
    sqlite3.SQLITE_CANTOPEN: "check that its folder exists and can be written by the agent",
    sqlite3.SQLITE_BUSY: "one agent at a time can have it; end the other one",
    sqlite3.SQLITE_IOERR: "check the file system and the disk beneath; what was stored before is kept",
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
}
_REPORT = "report this with the agent's log; what was stored before is kept"


class StoreError(Exception):
    """The store can't be opened, read or written. The message names the file, the reason and the remedy."""


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn what SQLite and the kernel say while the file is worked on into a StoreError."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        holder = _holder(path) if code == sqlite3.SQLITE_BUSY else ""
        raise StoreError(f"{path}: {doing}: {error}{holder}; {_REMEDIES.get(code, _REPORT)}") from error
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
        raise StoreError(f"{path}: {doing}: {why}; check owner, mode and file system") from error


def open_file(path: Path) -> sqlite3.Connection:
    """Open the file, or create it and its folder, and bring an older one up to this version.

    Raises:
        StoreError: Another process has it, it can't be created or read, it is damaged, it is of a newer version, or
            it is something else. No document is touched then.
    """
    with explained(path, "the store can't be opened"):
        created = _create(path)
        connection = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
        if created:
            _sync_folder(path.parent)
        return connection


def _create(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, "read-only here, or not this user's", str(path)) from None
        return False
    return True


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    application, version = _number(connection, "application_id"), _number(connection, "user_version")
    if application != _APPLICATION_ID and not _is_blank(connection):
        raise StoreError(f"{path}: this is not a store of tapster; set paths.state to the right folder")
    if version > len(_MIGRATIONS):
        raise StoreError(
            f"{path}: a newer tapster made this store (version {version}, this one knows {len(_MIGRATIONS)}); "
            f"upgrade tapster, or restore the backup from before"
        )
    if problems := quick_check(connection):
        raise StoreError(f"{path}: the store is damaged: {problems[0]}; {DAMAGED}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    for number, step in enumerate(_MIGRATIONS[version:], start=version + 1):
        marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {number};"
        connection.executescript(f"BEGIN EXCLUSIVE; {step} {marks} COMMIT;")


def quick_check(connection: sqlite3.Connection) -> tuple[str, ...]:
    """What SQLite finds wrong with the file's structure; empty when it is sound."""
    return tuple(" ".join(text.split()) for (text,) in connection.execute("PRAGMA quick_check(10)") if text != "ok")


def _is_blank(connection: sqlite3.Connection) -> bool:
    """Whether nothing is in the file, which is not the same as an empty file: a kill while it is made leaves a page."""
    (things,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return things == 0 and _number(connection, "application_id") == 0


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    (number,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(number)


def _holder(path: Path) -> str:
    """Who has SQLite's lock, as far as the kernel tells.

    Read from the kernel's list, because closing a descriptor of the file would let go of this process's own locks.
    """
    inode = path.stat().st_ino
    locks = (line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines())
    holder = next((lock[4] for lock in locks if lock[3] == "WRITE" and lock[5].endswith(f":{inode}")), None)
    return f" by process {holder}" if holder else ""


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
