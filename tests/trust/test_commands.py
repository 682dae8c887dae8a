"""`tapster keys`, `sign` and `push --sign` against a real broker, and a host that takes what they send."""

import asyncio
import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.bus.operator import operator
from agent.settings import Settings, load
from agent.trust.private_key import PrivateKey
from agent.trust.statement import TrustStatement, encode_chain, read_chain, read_statement
from reconcilers.reason import Reason
from tests.broker import Broker, running_broker
from tests.trust.signing import FLEET, XML, folder, sealed
from tests.trust.test_rotation import SOON
from tests.trust.test_signed_documents import TOPICS, Host


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker() as broker:
        yield broker


class Desk:
    """An operator's machine: settings, keys, a definition, and the command."""

    def __init__(self, path: Path, broker: Broker) -> None:
        self.path = path
        self.config = path / "operator.toml"
        self.trust = folder(path / "trust")
        self.config.write_text(
            f'host = "desk"\nfleet = "{FLEET}"\n[broker]\nport = {broker.port}\n[trust]\nkeys = "{self.trust}"\n'
        )
        (path / "web.xml").write_text(XML)
        self.clear(TOPICS.trust, TOPICS.desired("web"), TOPICS.group_desired("web", "web"))

    @property
    def settings(self) -> Settings:
        return load(self.config)

    def tapster(self, *words: str, code: int = 0, stdin: str = "") -> str:
        """Run the command in the desk's folder; returns what it prints, or says where it was to fail."""
        configured = [] if words[:2] == ("keys", "new") else ["--config", str(self.config)]
        command = [sys.executable, "-c", "from agent.cli.app import main; main()", *words, *configured]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=120, cwd=self.path, input=stdin
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done.stderr if code else done.stdout

    def key(self, name: str, *, trusted: bool = True) -> PrivateKey:
        """Make a pair of keys, and trust it here."""
        key = PrivateKey.new()
        key.save(self.path / f"{name}.key")
        for place in (self.path, self.trust) if trusted else (self.path,):
            (place / f"{name}.pub").write_text(key.public.pem)
        return key

    def retained(self, topic: str) -> bytes:
        async def look() -> bytes:
            async with operator(self.settings) as op:
                found = await op.retained(topic)
            return found[0].payload if found else b""

        return asyncio.run(look())

    def put(self, topic: str, payload: bytes) -> None:
        async def publish() -> None:
            async with operator(self.settings) as op:
                await op.publish(topic, payload)

        asyncio.run(publish())

    def clear(self, *topics: str) -> None:
        for topic in topics:
            self.put(topic, b"")


@pytest.fixture
def desk(broker: Broker, tmp_path: Path) -> Desk:
    return Desk(tmp_path, broker)


def host_of(desk: Desk, *keys: PrivateKey, threshold: int = 1) -> Host:
    (desk.path / "host").mkdir()
    return Host(desk.path / "host", *keys, required=True, threshold=threshold)


def test_new_keys_are_made_as_they_should_be(desk: Desk) -> None:
    (desk.path / "phrase").write_text("correct horse\n")
    said = desk.tapster("keys", "new", "a", "--passphrase-file", "phrase")
    assert stat.S_IMODE((desk.path / "a.key").stat().st_mode) == 0o600
    key = PrivateKey.load(desk.path / "a.key", b"correct horse")
    assert key.public.id in said
    assert "no key is ever overwritten" in desk.tapster("keys", "new", "a", code=1)
    (desk.path / "empty").write_text("\n")
    assert "it is empty" in desk.tapster("keys", "new", "b", "--passphrase-file", "empty", code=1)


def test_what_is_signed_may_come_by_standard_input_and_is_told_from_a_definition(desk: Desk) -> None:
    desk.key("a"), desk.key("b")
    words = ("sign", "web.xml", "--host", "db1", "--generation", "1", "--key", "a.key")
    signed = desk.tapster(*words)
    (desk.path / "signed").write_text(signed)
    both = desk.tapster("sign", "-", "--key", "b.key", stdin=signed)
    assert len(json.loads(both)["signatures"]) == 2
    desk.tapster("push", "-", stdin=both)
    assert json.loads(desk.retained(TOPICS.desired("web"))) == json.loads(both)
    for command, code in (("plan", 1), ("diff", 2)):
        assert "the text is signed, and only `tapster push` takes that" in desk.tapster(command, "signed", code=code)


def test_a_file_that_can_not_be_used_is_named(desk: Desk) -> None:
    (desk.path / "bad.xml").write_bytes(b"<domain>\xff")
    assert "bad.xml: line 1: NotUtf8: " in desk.tapster("plan", "bad.xml", code=1)
    for command in (("plan",), ("render", "--to", "xl")):
        said = desk.tapster(*command, "gone.xml", code=1)
        assert "gone.xml: can't be read: No such file or directory; check its name and permissions" in said


def test_brackets_in_a_folder_s_name_are_shown_as_they_are(desk: Desk) -> None:
    desk.key("a")
    desk.trust.rename(desk.path / "tr[x]ust")
    desk.config.write_text(desk.config.read_text().replace(str(desk.trust), f"{desk.path}/tr[x]ust"))
    assert f"{desk.path}/tr[x]ust/a.pub" in desk.tapster("keys", "list")


def test_what_is_pushed_with_a_key_counts_on_a_host(desk: Desk) -> None:
    host = host_of(desk, desk.key("a"))
    for generation in (1, 2):
        desk.tapster("push", "web.xml", "--host", "db1", "--sign", "a.key")
        assert host.verdict(desk.retained(TOPICS.desired("web"))) is Reason.ACCEPTED
        assert host.in_force == generation
    desk.tapster("absent", "web", "--host", "db1", "--sign", "a.key")
    assert host.verdict(desk.retained(TOPICS.desired("web"))) is Reason.ACCEPTED
    desk.tapster("push", "web.xml", "--group", "web", "--sign", "a.key")
    topic = TOPICS.group_desired("web", "web")
    assert host.verdict(desk.retained(topic), topic) is Reason.ACCEPTED
    desk.tapster("push", "web.xml", "--host", "db1")
    assert host.verdict(desk.retained(TOPICS.desired("web"))) is Reason.SIGNATURE_MISSING


def test_two_operators_sign_one_after_the_other(desk: Desk) -> None:
    host = host_of(desk, desk.key("a"), desk.key("b"), threshold=2)
    desk.tapster("sign", "web.xml", "--host", "db1", "--generation", "7", "--key", "a.key", "--out", "web.a")
    desk.tapster("push", "web.a")
    assert host.verdict(desk.retained(TOPICS.desired("web"))) is Reason.THRESHOLD_NOT_MET
    desk.tapster("sign", "web.a", "--key", "b.key", "--out", "web.ab")
    assert "already" not in desk.tapster("push", "web.ab")
    assert host.verdict(desk.retained(TOPICS.desired("web"))) is Reason.ACCEPTED
    assert host.in_force == 7
    old = desk.tapster("sign", "web.xml", "--host", "db1", "--generation", "6", "--key", "a.key")
    (desk.path / "web.old").write_text(old)
    assert "is below 7" in desk.tapster("push", "web.old", code=1)


def test_what_is_co_signed_is_shown(desk: Desk) -> None:
    desk.key("a")
    desk.tapster("sign", "web.xml", "--group", "web", "--generation", "1", "--key", "a.key", "--out", "web.a")
    command = [sys.executable, "-c", "from agent.cli.app import main; main()", "sign", "web.a", "--key", "a.key"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=desk.path)
    assert '"scope": "group:web"' in done.stderr
    assert json.loads(done.stdout)["payloadType"] == "application/vnd.tapster.desired+json"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("push web.xml --host db1 --sign none.key", 1, "none.key: can't be read"),
        ("push web.xml --host db1 --sign a.pub", 1, "a.pub: others can read"),
        ("push web.xml --host db1 --sign locked.key", 1, "locked.key: it is encrypted; give a passphrase"),
        ("sign web.xml --key a.key", 2, "say whom it is for"),
        ("sign web.xml --key a.key --host db1 --group web --generation 1", 2, "say whom it is for"),
        ("sign web.xml --key a.key --host db1 --generation 1 --out web.xml", 1, "not there yet"),
        ("sign broken --key a.key", 1, "the signed envelope is broken: it is no base64"),
        ("push broken", 1, "the signed envelope is broken"),
        ("keys rotate", 2, "name a private key of now"),
        ("keys rotate --sign a.key --trust web.xml", 1, "it is no public key"),
        ("keys rotate --sign a.key --threshold 2", 1, "2 of 1 keys can never sign"),
        ("keys rotate --sign stranger.key", 1, "hosts would not follow it"),
        ("keys rotate --statement broken", 1, "signed envelope is broken"),
    ],
)
def test_mistakes_are_told_and_nothing_is_published(desk: Desk, words: str, code: int, says: str) -> None:
    desk.key("a")
    desk.key("stranger", trusted=False)
    PrivateKey.new().save(desk.path / "locked.key", b"x")
    (desk.path / "broken").write_text('{"payloadType": "x", "payload": "!", "signatures": []}')
    assert says in " ".join(desk.tapster(*words.split(), code=code).replace("│", " ").split())
    assert desk.retained(TOPICS.trust) == desk.retained(TOPICS.desired("web")) == b""


def test_keys_hand_over_by_the_command(desk: Desk) -> None:
    a, b = desk.key("a"), desk.key("b", trusted=False)
    host = host_of(desk, a)
    assert "trust statement 1: 1 of 1 keys must sign" in desk.tapster("keys", "rotate", "--sign", "a.key")
    assert "trust statement 2" in desk.tapster("keys", "rotate", "--sign", "a.key", "--trust", "b.pub")
    assert "lead to other keys" in desk.tapster("keys", "rotate", "--sign", "b.key", code=1)
    folder(desk.trust, b)
    assert "trust statement 3" in desk.tapster("keys", "rotate", "--sign", "b.key")
    assert "trust statement 4" in desk.tapster("keys", "rotate", "--sign", "b.key", "--days", "2")
    host.take((TOPICS.trust, desk.retained(TOPICS.trust)))
    assert host.intake.trust.standing()[0] is None
    assert host.verdict(sealed(a)) is Reason.SIGNER_UNKNOWN
    assert host.verdict(sealed(b)) is Reason.ACCEPTED
    chain = read_chain(desk.retained(TOPICS.trust), max_bytes=100_000)
    assert [read_statement(link).version for link in chain] == [1, 2, 4]
    shown = json.loads(desk.tapster("keys", "list", "--bus", "--output", "json"))
    assert [one["version"] for one in shown["statements"]] == [1, 2, 4]
    assert shown["statements"][-1]["keys"] == [b.public.id] == [key["keyid"] for key in shown["keys"]]
    assert b.public.id[:12] in desk.tapster("keys", "list", "--bus")


def test_a_statement_that_several_must_sign(desk: Desk) -> None:
    desk.config.write_text(desk.config.read_text() + "threshold = 2\n")
    a, b, c = desk.key("a"), desk.key("b"), desk.key("c", trusted=False)
    host = host_of(desk, a, b, threshold=2)
    rotate = ("keys", "rotate", "--trust", "c.pub", "--threshold", "1", "--sign", "a.key")
    assert "1 of the keys in force signed, and 2 of 2 must" in desk.tapster(*rotate, code=1)
    desk.tapster(*rotate, "--out", "one")
    assert "hosts would not follow it" in desk.tapster("keys", "rotate", "--statement", "one", code=1)
    desk.tapster("sign", "one", "--key", "b.key", "--out", "both")
    desk.tapster("keys", "rotate", "--statement", "both")
    assert "is at version 1 already" in desk.tapster("keys", "rotate", "--statement", "both", code=1)
    host.take((TOPICS.trust, desk.retained(TOPICS.trust)))
    assert host.verdict(sealed(c)) is Reason.ACCEPTED


def test_a_broker_cannot_get_its_own_keys_signed(desk: Desk) -> None:
    """It puts a statement with its keys on the bus and waits for an operator to renew it."""
    a, thief = desk.key("a"), PrivateKey.new()
    forged = TrustStatement(fleet=FLEET, version=8, threshold=1, keys=(thief.public.pem,), expires=SOON)
    desk.put(TOPICS.trust, encode_chain([forged.envelope().signed_by(thief)]))
    desk.tapster("keys", "rotate", "--sign", "a.key")
    chain = read_chain(desk.retained(TOPICS.trust), max_bytes=100_000)
    assert read_statement(chain[-1]).public_keys == {a.public}
    huge = TrustStatement(fleet=FLEET, version=2**62, threshold=1, keys=(thief.public.pem,), expires=SOON)
    desk.put(TOPICS.trust, encode_chain([huge.envelope().signed_by(thief)]))
    assert "nobody counts that far" in desk.tapster("keys", "rotate", "--sign", "a.key", code=1)
    desk.clear(TOPICS.trust)
    assert "trust statement 9" in desk.tapster("keys", "rotate", "--sign", "a.key", "--version", "9")


def test_a_broker_cannot_use_the_generations_up(desk: Desk) -> None:
    """It puts a document with a huge one on the bus and waits for an operator to sign the next."""
    desk.key("a")
    desk.put(TOPICS.desired("web"), sealed(PrivateKey.new(), generation=2**63 - 2).encode())
    assert "nobody counts that far" in desk.tapster("push", "web.xml", "--host", "db1", "--sign", "a.key", code=1)
    desk.tapster("push", "web.xml", "--group", "web", "--sign", "a.key")
