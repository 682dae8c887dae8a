"""What comes in from the bus, with a real store: what is durable is told, whatever becomes of the rest."""

import sqlite3
from pathlib import Path

import pytest

from agent.bus.message import Message
from agent.bus.topics import Topics
from agent.definition import Limits
from agent.intake import Accepted, Intake, Outcome, TurnedAway, Unchanged
from agent.setting_sections import TrustSettings
from agent.store import Store
from agent.store_file import StoreError
from agent.trust.policy import Trust

TOPICS = Topics("prod", "db1")
GOOD = Message(TOPICS.desired("good"), b"<domain><name>good</name></domain>")
BAD = Message(TOPICS.desired("bad"), b"<domain")


def intake_of(store: Store) -> Intake:
    trust = Trust.begin(TrustSettings(), "prod", None)
    return Intake(store, TOPICS, Limits(), guests_max=10, trust=trust)


def refuse_rejections(path: Path, *, from_now_on: bool) -> None:
    """Have SQLite itself fail when a rejection is written, as a full disk does."""
    Store.open(path).close()
    trigger = "CREATE TRIGGER full BEFORE INSERT ON rejection BEGIN SELECT RAISE(ABORT, 'no room'); END"
    with sqlite3.connect(path) as connection:
        connection.execute(trigger if from_now_on else "DROP TRIGGER full")
    connection.close()


def test_what_is_on_record_already_is_told_when_the_rest_fails(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    outcomes: list[Outcome] = []
    refuse_rejections(path, from_now_on=True)
    with Store.open(path) as store, pytest.raises(StoreError, match="no room"):
        intake_of(store).take([GOOD, BAD], outcomes)
    assert [type(one) for one in outcomes] == [Accepted]
    refuse_rejections(path, from_now_on=False)
    with Store.open(path) as store:
        intake_of(store).take([GOOD, BAD], again := list[Outcome]())
    assert [type(one) for one in again] == [Unchanged, TurnedAway]
