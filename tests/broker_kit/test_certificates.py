"""Whom the kit's broker turns away, whom an agent turns away, and what the script makes."""

import asyncio
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL

import aiomqtt
import pytest

from agent.bus.connection import Connection
from agent.bus.operator import BusError, operator
from agent.setting_sections import BrokerSettings, TlsSettings
from agent.settings import Settings
from reconcilers.opener.ask import VARIABLE
from tests.broker import free_port
from tests.broker_kit.kit import KIT, Certificates, KitBroker, kit_broker
from tests.doors import doors


async def connects(settings: BrokerSettings, client: str = "db1") -> bool:
    try:
        async with Connection(settings, client=client, user=client) as connection:
            await connection.follow(["tapster/v1/lab/hosts/db1/sync"])
            return True
    except aiomqtt.MqttError:
        return False


def with_tls(settings: BrokerSettings, tls: TlsSettings) -> BrokerSettings:
    return settings.model_copy(update={"tls": tls})


async def test_its_own_are_let_in(broker: KitBroker) -> None:
    assert await connects(broker.as_host("db1"))
    assert await connects(broker.as_operator(), "operator-1")


async def test_nobody_is_let_in_without_a_certificate(broker: KitBroker) -> None:
    own = broker.as_host("db1")
    nobody = TlsSettings(ca_file=own.tls.ca_file)
    assert not await connects(with_tls(own, nobody))
    assert not await connects(with_tls(broker.as_operator(), nobody), "operator-1")
    assert not await connects(own.model_copy(update={"tls": TlsSettings()}))


async def test_foreign_certificates_are_turned_away(broker: KitBroker, tmp_path: Path) -> None:
    """Of the same name, from another fleet's authority; the broker is trusted all the same."""
    foreign = Certificates(tmp_path).tls("host", "db1")
    own = broker.as_host("db1")
    assert not await connects(with_tls(own, foreign.model_copy(update={"ca_file": own.tls.ca_file})))


async def test_one_kind_is_turned_away_at_the_others_door(broker: KitBroker) -> None:
    """Else a host could be an operator, or choose its client id there and take over another one's session."""
    assert not await connects(broker.as_host("db1", port=broker.operators_port), "operator-1")
    assert not await connects(broker.as_host("db1", port=broker.operators_port), "db2")
    assert not await connects(broker.as_operator(port=broker.port), "alice")


async def test_expired_certificates_are_turned_away(broker: KitBroker, certificates: Certificates) -> None:
    folder = certificates.folder / "hosts/late"
    certificates.make("host", "late")
    assert await connects(broker.as_host("late"), "late")
    shutil.rmtree(folder)
    certificates.make("host", "late", days="0")
    await asyncio.sleep(1.1)  # certificates count in seconds
    assert not await connects(broker.as_host("late"), "late")


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (True, "openssl x509 -noout -subject -issuer -enddate -in "),
        (False, "it may want a certificate: broker.tls.cert_file and key_file"),
    ],
)
async def test_who_is_turned_away_is_told_why_without_waiting(broker: KitBroker, own: bool, says: str) -> None:
    turned_away = broker.as_host("db1", port=broker.operators_port)
    if not own:
        turned_away = with_tls(turned_away, TlsSettings(ca_file=turned_away.tls.ca_file))
    patient = turned_away.model_copy(update={"connect_timeout": 30})
    with pytest.raises(BusError) as told:
        async with operator(Settings(host="db1", fleet="lab", broker=patient)):
            pass
    assert "closed the connection before it answered" in str(told.value)
    assert says in str(told.value)


async def test_who_does_without_tls_is_told_of_it(broker: KitBroker) -> None:
    plain = broker.as_host("db1").model_copy(update={"tls": TlsSettings(), "connect_timeout": 30})
    with pytest.raises(BusError, match="it may want TLS"):
        async with operator(Settings(host="db1", fleet="lab", broker=plain)):
            pass


async def test_revoked_certificates_are_turned_away(certificates: Certificates, tmp_path: Path) -> None:
    with kit_broker(tmp_path, certificates) as broker:
        stolen = broker.as_host("lost")
        kept = certificates.folder / "kept"
        shutil.copytree(certificates.folder / "hosts/lost", kept)
        stolen = with_tls(
            stolen, TlsSettings(ca_file=kept / "ca.pem", cert_file=kept / "host.pem", key_file=kept / "host.key")
        )
        assert await connects(stolen, "lost")
        assert "lost is revoked" in certificates.make("revoke", "host", "lost")
        broker.restart(SIGKILL)
        assert not await connects(stolen, "lost")
        assert await connects(broker.as_host("lost"), "lost")


async def test_an_agent_turns_a_false_broker_away(broker: KitBroker, certificates: Certificates) -> None:
    """One with a host's certificate, or with another name's: 127.1 is an address that the certificate lacks."""
    own = broker.as_host("db1")
    assert not await connects(
        with_tls(own, own.tls.model_copy(update={"ca_file": certificates.folder / "mosquitto/hosts-ca.pem"}))
    )
    assert not await connects(own.model_copy(update={"host": "127.1"}))


async def test_tls_ends_in_the_agent_where_its_connections_are_opened_next_door(
    broker: KitBroker, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with doors(tmp_path, "network") as folder:
        monkeypatch.setenv(VARIABLE, str(folder))
        await test_its_own_are_let_in(broker)
        await test_an_agent_turns_a_false_broker_away(broker, certificates)
    assert not await connects(broker.as_host("db1")), "it does go by way of the door"


def test_the_broker_speaks_no_old_tls(broker: KitBroker, certificates: Certificates) -> None:
    tls = certificates.tls("host", "db1")
    command = f"openssl s_client -connect 127.0.0.1:{broker.port} -CAfile {tls.ca_file} -cert {tls.cert_file}"
    words = [*command.split(), "-key", str(tls.key_file), "-cipher", "DEFAULT@SECLEVEL=0"]
    answers = {
        version: subprocess.run([*words, version], check=False, input=b"", capture_output=True, timeout=60)
        for version in ("-tls1_1", "-tls1_2")
    }
    assert answers["-tls1_2"].returncode == 0, answers["-tls1_2"].stderr
    assert answers["-tls1_1"].returncode != 0
    assert b"protocol version" in answers["-tls1_1"].stderr


@pytest.mark.parametrize(("version", "shakes_hands"), [("-tls1_1", False), ("-tls1_2", True)])
def test_an_agent_speaks_no_old_tls(certificates: Certificates, version: str, shakes_hands: bool) -> None:
    port, made = free_port(), certificates.folder / "mosquitto"
    command = f"openssl s_server -accept 127.0.0.1:{port} -cert {made}/broker.pem -key {made}/broker.key -naccept 1"
    words = [*command.split(), version, "-cipher", "DEFAULT@SECLEVEL=0"]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while f":{port:04X} 00000000:0000 0A" not in Path("/proc/net/tcp").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        own = BrokerSettings(host="localhost", port=port, tls=certificates.tls("host", "db1"), connect_timeout=2)
        assert not asyncio.run(connects(own))  # it speaks no MQTT in either case
    finally:
        server.terminate()
        told, _ = server.communicate(timeout=60)
    assert (b"CIPHER is" in told) == shakes_hands, told


def test_keys_are_their_owners_alone(certificates: Certificates) -> None:
    certificates.tls("host", "db1")
    keys = list(certificates.folder.rglob("*.key"))
    assert len(keys) >= 5
    for file in keys:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE((certificates.folder / "authorities").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("host Db1", "can't be a name"),
        ("host ../x", "can't be a name"),
        ("host db_1", "can't be a name"),
        ("authorities", "is there already, and nothing is overwritten"),
        ("broker other", "is there already, and nothing is overwritten"),
        ("revoke host nobody", "there is no host 'nobody'"),
        ("host", "make-certificates FOLDER host db1"),
        ("guest x", "make-certificates FOLDER host db1"),
    ],
)
def test_mistakes_are_told(certificates: Certificates, words: str, says: str) -> None:
    done = subprocess.run(
        [KIT / "make-certificates", certificates.folder, *words.split()],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode in (1, 2)
    assert says in done.stderr


def mistaken(folder: Path, *words: str, days: str = "30") -> str:
    """What the script says, called by a relative path, with the folder's own programs first."""
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "DAYS": days}
    command = ["./make-certificates", os.path.relpath(folder, KIT), *words]
    done = subprocess.run(command, check=False, cwd=KIT, env=environment, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    return done.stderr


@contextmanager
def failing_openssl(folder: Path) -> Iterator[None]:
    """One that makes keys and fails at what an authority is to sign."""
    program = folder / "openssl"
    program.write_text('#!/bin/sh\n[ "$1" != ca ] || exit 1\nexec /usr/bin/openssl "$@"\n')
    program.chmod(0o755)
    yield
    program.unlink()


def files_in(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("words", ["guest x", "host", "revoke host", "authorities more"])
def test_wrong_words_make_nothing(tmp_path: Path, words: str) -> None:
    assert "make-certificates FOLDER host db1" in mistaken(tmp_path / "ca", *words.split())
    assert "there are no authorities" in mistaken(tmp_path / "ca", "host", "db1")
    assert not (tmp_path / "ca").exists()


@pytest.mark.parametrize("words", ["host db9", "operator eve", "broker other.example.net"])
def test_what_fails_leaves_nothing_in_its_place(tmp_path: Path, words: str) -> None:
    made = Certificates(tmp_path)
    for file in (tmp_path / "mosquitto").glob("broker.*"):
        file.unlink()
    before = files_in(tmp_path)
    assert "DAYS is 'abc'" in mistaken(tmp_path, *words.split(), days="abc")
    with failing_openssl(tmp_path):
        assert "openssl failed" in mistaken(tmp_path, *words.split())
    assert files_in(tmp_path) == before
    made.make(*words.split())


def test_authorities_are_made_whole_or_not_at_all(tmp_path: Path) -> None:
    with failing_openssl(tmp_path):
        assert "openssl failed" in mistaken(tmp_path, "authorities")
    assert files_in(tmp_path) == set()
    Certificates(tmp_path).make("host", "db1")
