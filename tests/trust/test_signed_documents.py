"""Signed documents on their way in, with a real store: what counts, and what a broker or a wrong signer can't do."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bus.message import Message
from agent.bus.topics import Scope, Topics
from agent.definition import DocumentRejected, Limits
from agent.desired import DesiredWorld, Gone
from agent.document import read_document
from agent.intake import Accepted, Intake, Outcome, TurnedAway, Unchanged, Withdrawn
from agent.setting_sections import TrustSettings
from agent.store import Store
from agent.trust.dsse import Envelope
from agent.trust.policy import Keyring, Trust
from agent.trust.private_key import PrivateKey
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey
from tests.trust.signing import FLEET, XML, fields, folder, sealed

A, B, C, STRANGER = (PrivateKey.new() for _ in range(4))
TOPICS = Topics(FLEET, "db1")


class Host:
    """What comes in on a host: a store on disk, keys in a folder, and the world that they make."""

    def __init__(self, path: Path, *keys: PrivateKey, required: bool = False, threshold: int = 1) -> None:
        self.path = path
        self.settings = TrustSettings(required=required, keys=folder(path / "trust", *keys), threshold=threshold)
        self.start()

    def start(self) -> None:
        self.store = Store.open(self.path / "store.sqlite")
        trust = Trust.begin(self.settings, FLEET, self.store.trust())
        self.intake = Intake(self.store, TOPICS, Limits(), guests_max=100, trust=trust)
        self.world = DesiredWorld(host="db1", groups=("web",), partial=True)
        self.put(self.intake.load())

    def restart(self, **changes: Any) -> None:
        self.store.close()
        self.settings = self.settings.model_copy(update=changes)
        self.start()

    def put(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            match outcome:
                case Accepted(guest):
                    self.world.put(guest)
                case Withdrawn(name, scope):
                    self.world.withdraw(name, scope)
                case _:
                    pass

    def take(self, *documents: tuple[str, Envelope | bytes]) -> list[Outcome]:
        payloads = [(topic, one.encode() if isinstance(one, Envelope) else one) for topic, one in documents]
        outcomes: list[Outcome] = []
        self.intake.take([Message(topic, payload) for topic, payload in payloads], outcomes)
        self.put(outcomes)
        return outcomes

    def verdict(self, document: Envelope | bytes, topic: str = TOPICS.desired("web")) -> Reason:
        """Accepted, or why not."""
        (outcome,) = self.take((topic, document))
        if isinstance(outcome, TurnedAway):
            return outcome.rejection.reason
        assert isinstance(outcome, Accepted)
        return Reason.ACCEPTED

    @property
    def in_force(self) -> int | str | None:
        """The generation that counts, or its state where it has none."""
        guest = self.world.guest("web")
        return (guest.document.generation or guest.document.state) if guest else None


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, A, B, required=True)


def plain(**changes: Any) -> bytes:
    """The same without a signature."""
    return json.dumps(fields(**{"fleet": ..., "scope": ..., **changes})).encode()


def test_a_signed_document_counts(host: Host) -> None:
    (outcome,) = host.take((TOPICS.desired("web"), sealed(A)))
    assert isinstance(outcome, Accepted)
    assert outcome.guest.document.signers == (A.public.id,)
    assert outcome.guest.document.body == XML.encode()
    host.restart()
    again = host.world.guest("web")
    assert again is not None
    assert again.document.signers == (A.public.id,)
    (outcome,) = host.take((TOPICS.desired("web"), sealed(A)))
    assert isinstance(outcome, Unchanged)


@pytest.mark.parametrize(
    "unsigned", [XML.encode(), plain(), plain(state="absent", domain_xml=...), plain(generation=9)]
)
def test_where_signatures_are_required_unsigned_ones_are_refused(host: Host, unsigned: bytes) -> None:
    assert host.verdict(unsigned) is Reason.SIGNATURE_MISSING
    assert host.verdict(sealed(A)) is Reason.ACCEPTED
    assert host.verdict(unsigned) is Reason.SIGNATURE_MISSING
    assert host.in_force == 1


def test_strangers_sign_in_vain(host: Host) -> None:
    assert host.verdict(sealed(STRANGER)) is Reason.SIGNER_UNKNOWN
    assert host.verdict(sealed(STRANGER, A)) is Reason.ACCEPTED


def test_a_document_that_was_changed_after_signing_is_refused(host: Host) -> None:
    good = sealed(A)
    other = Envelope(good.payload_type, good.payload.replace(b"present", b"absent!"), good.signatures)
    assert host.verdict(other) is Reason.SIGNATURE_INVALID
    assert host.in_force is None


@given(st.data())
def test_no_change_of_a_byte_makes_another_document(data: st.DataObject) -> None:
    """Whatever is changed in an envelope, it is refused or says what was signed."""
    payload = bytearray(sealed(A, B).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    trust = Trust(fleet=FLEET, required=True, root=Keyring(frozenset({A.public, B.public}), 1))
    with suppress(DocumentRejected):
        read = read_document(
            bytes(payload), scope=Scope("host", "db1"), guest="web", properties={}, limits=Limits(), opener=trust
        )
        assert not read.signers or (read.generation, read.state, read.body) == (1, "present", XML.encode())


@pytest.mark.parametrize(
    ("changes", "topic", "reason"),
    [
        ({"fleet": "other"}, TOPICS.desired("web"), Reason.SCOPE_MISMATCH),
        ({"scope": "host:db2"}, TOPICS.desired("web"), Reason.SCOPE_MISMATCH),
        ({"scope": "group:web"}, TOPICS.desired("web"), Reason.SCOPE_MISMATCH),
        ({"scope": "group:db1"}, TOPICS.desired("web"), Reason.SCOPE_MISMATCH),
        ({}, TOPICS.group_desired("web", "web"), Reason.SCOPE_MISMATCH),
        ({"scope": "group:web"}, TOPICS.group_desired("all", "web"), Reason.SCOPE_MISMATCH),
        ({"scope": "host:web"}, TOPICS.group_desired("web", "web"), Reason.SCOPE_MISMATCH),
        ({"guest": "db"}, TOPICS.desired("web"), Reason.NAME_MISMATCH),
        ({"fleet": ...}, TOPICS.desired("web"), Reason.INVALID_DOCUMENT),
        ({"scope": ...}, TOPICS.desired("web"), Reason.INVALID_DOCUMENT),
        ({"generation": ...}, TOPICS.desired("web"), Reason.INVALID_DOCUMENT),
        ({"generation": None}, TOPICS.desired("web"), Reason.INVALID_DOCUMENT),
        ({"generation": "1"}, TOPICS.desired("web"), Reason.INVALID_DOCUMENT),
        ({"more": 1}, TOPICS.desired("web"), Reason.INVALID_DOCUMENT),
        ({"payload_type": "application/vnd.tapster.trust+json"}, TOPICS.desired("web"), Reason.INVALID_DOCUMENT),
        ({"payload_type": "application/json"}, TOPICS.desired("web"), Reason.INVALID_DOCUMENT),
    ],
)
def test_a_signed_document_is_good_for_its_place_alone(
    host: Host, changes: dict[str, Any], topic: str, reason: Reason
) -> None:
    assert host.verdict(sealed(A, **changes), topic) is reason


def test_a_field_that_stands_twice_under_the_signature_is_refused(host: Host) -> None:
    payload = json.dumps(fields())[:-1] + ', "state": "absent"}'
    assert host.verdict(Envelope(sealed().payload_type, payload.encode()).signed_by(A)) is Reason.MALFORMED_JSON
    assert host.verdict(Envelope(sealed().payload_type, b"\xff").signed_by(A)) is Reason.NOT_UTF8
    assert host.verdict(Envelope(sealed().payload_type, b"[]").signed_by(A)) is Reason.INVALID_DOCUMENT


def test_as_many_keys_must_sign_as_the_settings_say(tmp_path: Path) -> None:
    host = Host(tmp_path, A, B, C, required=True, threshold=2)
    assert host.verdict(sealed(A)) is Reason.THRESHOLD_NOT_MET
    assert host.verdict(sealed(A, STRANGER)) is Reason.THRESHOLD_NOT_MET
    twice = sealed(A)
    twice = Envelope(twice.payload_type, twice.payload, (*twice.signatures, *twice.signatures))
    assert host.verdict(twice) is Reason.THRESHOLD_NOT_MET
    assert host.verdict(sealed(C, A)) is Reason.ACCEPTED


def test_the_same_key_in_two_files_counts_once(tmp_path: Path) -> None:
    host = Host(tmp_path, A, A, required=True, threshold=2)
    assert host.verdict(sealed(A)) is Reason.TRUST_UNUSABLE


def test_an_old_document_does_not_come_back(host: Host) -> None:
    """Neither after a newer one, nor after an absent one, nor after a withdrawal or a restart."""
    old, new, gone = (
        sealed(A),
        sealed(A, generation=2, domain_xml="<domain/>"),
        sealed(A, generation=3, state="absent", domain_xml=...),
    )
    for document in (old, new, gone):
        assert host.verdict(document) is Reason.ACCEPTED
    for _ in range(2):
        assert host.verdict(old) is Reason.STALE_GENERATION
        assert host.verdict(new) is Reason.STALE_GENERATION
        host.take((TOPICS.desired("web"), b""))
        host.restart()
    assert host.verdict(sealed(A, generation=3)) is Reason.GENERATION_CONFLICT
    assert host.world.desired(DiskKey("web", "vda")) == Gone()


def test_a_replay_in_the_batch_of_the_newer_one_is_stale_too(host: Host) -> None:
    topic = TOPICS.desired("web")
    outcomes = host.take((topic, sealed(A, generation=2)), (topic, sealed(A)))
    assert [type(one) for one in outcomes] == [Accepted, TurnedAway]
    assert host.in_force == 2


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("generation", [1, 2, None])
@pytest.mark.parametrize("where", [TOPICS.desired("web"), TOPICS.group_desired("all", "web")])
def test_once_signed_is_always_signed(tmp_path: Path, where: str, generation: int | None, together: bool) -> None:
    """Also where unsigned documents of other guests count."""
    host = Host(tmp_path, A)
    signed = (TOPICS.group_desired("web", "web"), sealed(A, scope="group:web"))
    unsigned = (where, plain(generation=generation))
    outcomes = host.take(signed, unsigned) if together else [*host.take(signed), *host.take(unsigned)]
    assert isinstance(outcomes[1], TurnedAway)
    assert outcomes[1].rejection.reason is Reason.SIGNATURE_MISSING
    host.restart()
    assert host.verdict(unsigned[1], where) is Reason.SIGNATURE_MISSING
    assert host.verdict(plain(guest="db", domain_xml="<domain/>"), TOPICS.desired("db")) is Reason.ACCEPTED


def test_an_unsigned_document_from_before_gives_way_to_a_signed_one_in_any_scope(tmp_path: Path) -> None:
    host = Host(tmp_path, A)
    assert host.verdict(plain(generation=7)) is Reason.ACCEPTED
    assert host.verdict(sealed(A, scope="group:all"), TOPICS.group_desired("all", "web")) is Reason.ACCEPTED
    assert host.in_force == 1


def test_what_was_signed_does_not_give_way_to_an_emptied_topic(host: Host) -> None:
    """Else a broker could bring the group's document into force by emptying the host's."""
    gone = sealed(A, scope="group:web", state="absent", domain_xml=...)
    assert host.verdict(gone, TOPICS.group_desired("web", "web")) is Reason.ACCEPTED
    assert host.verdict(sealed(A, generation=5)) is Reason.ACCEPTED
    host.take((TOPICS.desired("web"), b""))
    assert host.in_force == 5
    host.restart()
    assert host.in_force == 5


def test_turning_the_requirement_on_takes_nothing_down(tmp_path: Path) -> None:
    host = Host(tmp_path, A)
    assert host.verdict(plain(generation=3)) is Reason.ACCEPTED
    host.restart(required=True)
    assert host.in_force == 3
    assert host.verdict(plain(generation=3)) is Reason.SIGNATURE_MISSING
    assert host.verdict(plain(generation=4, state="absent", domain_xml=...)) is Reason.SIGNATURE_MISSING
    assert host.in_force == 3


@pytest.mark.parametrize("required", [True, False])
def test_keys_that_cannot_be_read_let_nothing_pass_as_signed(tmp_path: Path, required: bool) -> None:
    host = Host(tmp_path, A, required=required)
    assert host.verdict(sealed(A)) is Reason.ACCEPTED
    (tmp_path / "trust/0.pub").write_text("rubbish")
    host.restart()
    assert host.in_force == 1
    assert host.verdict(sealed(A, generation=2)) is Reason.TRUST_UNUSABLE
    assert host.verdict(plain(generation=2)) is Reason.SIGNATURE_MISSING


def test_without_keys_an_envelope_counts_for_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert host.verdict(sealed(A)) is Reason.SIGNER_UNKNOWN
    assert host.verdict(plain()) is Reason.ACCEPTED
