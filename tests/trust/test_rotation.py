"""How keys hand over: statements on the bus, with a real store, against brokers that hold back, roll back and forge."""

import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.trust.dsse import Envelope
from agent.trust.private_key import PrivateKey
from agent.trust.statement import CHAIN_MAX, TrustStatement, encode_chain, extended, read_statement
from reconcilers.reason import Reason
from tests.trust.signing import FLEET, folder, sealed
from tests.trust.test_signed_documents import TOPICS, Host, plain

A, B, C, THIEF = (PrivateKey.new() for _ in range(4))
SOON = datetime.now(UTC) + timedelta(days=1)


def statement(version: int, keys: Sequence[PrivateKey], *signers: PrivateKey, **changes: Any) -> Envelope:
    fields = {"fleet": FLEET, "threshold": 1, "expires": SOON, "keys": tuple(key.public.pem for key in keys)}
    envelope = TrustStatement(**{**fields, "version": version, **changes}).envelope()
    for signer in signers:
        envelope = envelope.signed_by(signer)
    return envelope


def forged(content: dict[str, Any], *signers: PrivateKey) -> Envelope:
    """A statement that the model would not make."""
    good = json.loads(statement(1, [B]).payload)
    envelope = Envelope(statement(1, [B]).payload_type, json.dumps(good | content).encode())
    for signer in signers:
        envelope = envelope.signed_by(signer)
    return envelope


A_TO_B, B_TO_C = statement(1, [B], A), statement(2, [C], B)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, A, required=True)


def say(host: Host, *links: Envelope) -> None:
    host.take((TOPICS.trust, encode_chain(links)))


def trouble(host: Host) -> Reason | None:
    return host.intake.trust.standing()[0]


GENERATIONS = itertools.count(1)


def obeys(host: Host) -> set[PrivateKey]:
    """Whose documents count, found out by sending some."""
    keys = (A, B, C, THIEF)
    return {key for key in keys if host.verdict(sealed(key, generation=next(GENERATIONS))) is Reason.ACCEPTED}


def test_keys_hand_over_and_the_old_ones_are_out(host: Host) -> None:
    assert obeys(host) == {A}
    say(host, A_TO_B)
    assert obeys(host) == {B}
    say(host, A_TO_B, B_TO_C)
    host.restart()
    assert obeys(host) == {C}
    assert trouble(host) is None


def test_a_host_that_was_away_follows_all_the_way(host: Host) -> None:
    say(host, A_TO_B, B_TO_C)
    assert obeys(host) == {C}


def test_a_single_envelope_is_a_chain_of_one(host: Host) -> None:
    host.take((TOPICS.trust, A_TO_B))
    assert obeys(host) == {B}


def test_documents_of_the_same_batch_meet_the_new_keys(host: Host) -> None:
    host.take((TOPICS.desired("web"), sealed(B)), (TOPICS.trust, encode_chain([A_TO_B])))
    assert host.in_force == 1


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        (statement(1, [THIEF], THIEF), Reason.SIGNER_UNKNOWN),
        (statement(1, [THIEF]).signed_by(THIEF), Reason.SIGNER_UNKNOWN),
        (statement(1, [B], A, fleet="other"), Reason.SCOPE_MISMATCH),
        (Envelope(A_TO_B.payload_type, A_TO_B.payload.replace(b"1", b"3"), A_TO_B.signatures), None),
        (sealed(A), Reason.INVALID_DOCUMENT),
        (forged({"version": 0}, A), Reason.INVALID_DOCUMENT),
        (forged({"version": True}, A), Reason.INVALID_DOCUMENT),
        (forged({"version": 2**63}, A), Reason.INVALID_DOCUMENT),
        (forged({"threshold": 2}, A), Reason.INVALID_DOCUMENT),
        (forged({"threshold": 0}, A), Reason.INVALID_DOCUMENT),
        (forged({"keys": []}, A), Reason.INVALID_DOCUMENT),
        (forged({"keys": [B.public.pem, B.public.pem]}, A), Reason.INVALID_DOCUMENT),
        (forged({"keys": ["x"]}, A), Reason.INVALID_DOCUMENT),
        (forged({"expires": None}, A), Reason.INVALID_DOCUMENT),
        (forged({"expires": "2030-01-01T00:00:00"}, A), Reason.INVALID_DOCUMENT),
        (forged({"more": 1}, A), Reason.INVALID_DOCUMENT),
    ],
)
def test_a_statement_that_is_not_right_changes_nothing_but_the_condition(
    host: Host, link: Envelope, reason: Reason | None
) -> None:
    say(host, link)
    assert trouble(host) is not None
    assert reason in (None, trouble(host))
    assert obeys(host) == {A}
    host.restart()
    assert obeys(host) == {A}


@pytest.mark.parametrize(
    "payload",
    [b"x", b"\xff", b"[]", b"{}", b"[5]", b"[" * 5000, encode_chain([A_TO_B] * (CHAIN_MAX + 1)), b"x" * 300000],
)
def test_what_is_no_chain_changes_nothing_but_the_condition(host: Host, payload: bytes) -> None:
    host.take((TOPICS.trust, payload))
    assert trouble(host) is not None
    assert obeys(host) == {A}


def test_as_many_old_keys_must_sign_as_must_sign_documents(tmp_path: Path) -> None:
    host = Host(tmp_path, A, B, required=True, threshold=2)
    say(host, statement(1, [C], A))
    assert trouble(host) is Reason.THRESHOLD_NOT_MET
    say(host, statement(1, [C], A, A))
    assert trouble(host) is Reason.THRESHOLD_NOT_MET
    say(host, statement(1, [C], A, B))
    assert obeys(host) == {C}


def test_the_new_threshold_counts(host: Host) -> None:
    say(host, statement(1, [A, B], A, threshold=2))
    assert obeys(host) == set()
    assert host.verdict(sealed(A, B, generation=next(GENERATIONS))) is Reason.ACCEPTED


def test_a_key_that_was_let_go_leads_nowhere(host: Host) -> None:
    """A thief of an old key makes a chain of its own from where the host once was."""
    say(host, A_TO_B, B_TO_C)
    for restart in (False, True):
        if restart:
            host.restart()
        say(host, statement(1, [THIEF], A))
        assert trouble(host) is Reason.STALE_GENERATION
        say(host, A_TO_B, statement(3, [THIEF], B))
        assert trouble(host) is Reason.SIGNER_UNKNOWN
        say(host, statement(9, [THIEF], A), statement(10, [THIEF], THIEF))
        assert trouble(host) is Reason.SIGNER_UNKNOWN
        assert obeys(host) == {C}


def test_a_broker_that_rolls_back_is_found_out(host: Host) -> None:
    say(host, A_TO_B, B_TO_C)
    say(host, A_TO_B)
    assert trouble(host) is Reason.STALE_GENERATION
    host.take((TOPICS.trust, b""))
    assert trouble(host) is Reason.WITHDRAWN
    assert obeys(host) == {C}
    say(host, A_TO_B, B_TO_C)
    assert trouble(host) is None


def test_two_operators_at_once_are_found_out(host: Host) -> None:
    say(host, A_TO_B)
    say(host, statement(1, [C], A))
    assert trouble(host) is Reason.GENERATION_CONFLICT
    assert obeys(host) == {B}


def test_the_folder_has_the_last_word(host: Host) -> None:
    """Root took back the keys of a statement that one of the remaining keys had signed as well."""
    stolen = statement(4, [A, C], A, C)
    say(host, stolen)
    assert obeys(host) == {A, C}
    folder(host.path / "trust", C)
    host.restart()
    assert obeys(host) == {C}
    say(host, stolen)
    assert trouble(host) is Reason.STALE_GENERATION
    assert obeys(host) == {C}
    say(host, statement(4, [B], C))
    assert trouble(host) is Reason.GENERATION_CONFLICT
    say(host, stolen, statement(5, [B], C))
    assert trouble(host) is None
    assert obeys(host) == {B}


def test_a_new_host_with_the_newest_keys_in_its_folder_joins_in_the_middle(tmp_path: Path) -> None:
    host = Host(tmp_path, C, required=True)
    say(host, A_TO_B, B_TO_C, statement(3, [C], C))
    assert trouble(host) is None
    assert obeys(host) == {C}


def test_a_signed_document_is_no_statement_and_a_statement_no_document(host: Host) -> None:
    """Not even with the content of one: what kind of bytes they are was signed with them."""
    assert host.verdict(A_TO_B) is Reason.INVALID_DOCUMENT
    assert host.verdict(Envelope(A_TO_B.payload_type, sealed().payload).signed_by(A)) is Reason.INVALID_DOCUMENT
    for disguised in (sealed(A), Envelope(sealed().payload_type, A_TO_B.payload).signed_by(A)):
        say(host, disguised)
        assert trouble(host) is Reason.INVALID_DOCUMENT
        assert obeys(host) == {A}


def test_a_chain_leaves_out_what_leads_nowhere() -> None:
    chain = [A_TO_B]
    for version in range(2, 9):
        chain = extended(chain, statement(version, [B], B))
    chain = extended(chain, statement(9, [C], B))
    assert [read_statement(link).version for link in chain] == [1, 9]


def test_silence_of_the_signers_shows(host: Host) -> None:
    """Withholding is all that a broker can do, and it shows once the last word is no longer good."""
    fresh = host.intake.trust.freshness(SOON)
    assert fresh is not None
    assert fresh[0] is Reason.TRUST_STALE
    say(host, A_TO_B)
    for at, reason in ((SOON - timedelta(seconds=1), None), (SOON, Reason.TRUST_STALE)):
        fresh = host.intake.trust.freshness(at)
        assert fresh is not None
        assert fresh[0] is reason
    say(host, A_TO_B, statement(2, [B], B, expires=SOON + timedelta(days=1)))
    fresh = host.intake.trust.freshness(SOON)
    assert fresh is not None
    assert fresh[0] is None


def test_documents_still_count_when_the_last_word_is_stale(host: Host) -> None:
    """It is an alarm, no brake: a clock that jumps must not lock operators out."""
    say(host, statement(1, [B], A, expires=datetime(2001, 1, 1, tzinfo=UTC)))
    assert obeys(host) == {B}


def test_who_does_not_sign_is_not_bothered(tmp_path: Path) -> None:
    host = Host(tmp_path)
    say(host, A_TO_B)
    assert not host.intake.trust.used
    assert host.intake.trust.freshness(SOON) is None
    assert host.verdict(plain()) is Reason.ACCEPTED
