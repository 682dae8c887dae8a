"""Signed documents, a real agent and real disks: what counts, how keys hand over under way, and what is told."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.trust.dsse import Envelope
from agent.trust.private_key import PrivateKey
from agent.trust.statement import TrustStatement, encode_chain
from tests.trust.signing import folder, sealed
from tests.workbench import FLEET, Bench, bench, domain, loop_disk

A, B = PrivateKey.new(), PrivateKey.new()
TRUST = f"tapster/v1/{FLEET}/trust"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Bench]:
    keys = folder(tmp_path / "trust", A)
    with bench(f'[trust]\nrequired = true\nkeys = "{keys}"\n') as host:
        yield host


def push(host: Bench, generation: int, key: PrivateKey, *disks: str, **changes: Any) -> None:
    xml = domain("web", *disks) if disks else ...
    place: dict[str, Any] = {"fleet": FLEET, "scope": f"host:{host.host}", "generation": generation, "domain_xml": xml}
    host.push("web", sealed(key, **(place | changes)).encode())


def hand_over(host: Bench, *links: Envelope) -> None:
    host.publish(TRUST, encode_chain(links))


def statement(version: int, to: PrivateKey, by: PrivateKey, expires: datetime) -> Envelope:
    keys = (to.public.pem,)
    return (
        TrustStatement(fleet=FLEET, version=version, threshold=1, keys=keys, expires=expires).envelope().signed_by(by)
    )


def host_condition(host: Bench, kind: str) -> dict[str, Any]:
    statuses = [json.loads(payload) for topic, payload in host.messages if topic == f"{host.topics}/status/host"]
    conditions = statuses[-1]["conditions"] if statuses else []
    return next((one for one in conditions if one["type"] == kind), {})


def test_only_signed_documents_bring_disks_up_and_take_them_down(host: Bench) -> None:
    image = host.image("web")
    host.push("web", domain("web", loop_disk("vda", image)))
    host.until(lambda: host.condition("web", "Accepted").get("reason") == "SignatureMissing")
    assert host.loops() == []
    push(host, 1, A, loop_disk("vda", image))
    host.until_phase("web", "vda", "Up")
    host.absent("web", 99)
    host.until(lambda: host.condition("web", "Accepted").get("reason") == "SignatureMissing")
    host.publish(f"{host.topics}/desired/guests/web", b"")
    host.restart()
    host.until_phase("web", "vda", "Up")
    push(host, 2, A, state="absent")
    host.until_guest("web", "Down")
    host.assert_clean()


def test_keys_hand_over_while_disks_are_up(host: Bench) -> None:
    """A document that came before its keys counts once they have come, without a push."""
    image, soon = host.image("web"), datetime.now(UTC) + timedelta(days=1)
    push(host, 1, A, loop_disk("vda", image))
    host.until_phase("web", "vda", "Up")
    data = os.urandom(4096)
    with host.stable("web", "vda").open("r+b", buffering=0) as device:
        push(host, 2, B, loop_disk("vda", image), loop_disk("vdb", host.image("more")))
        host.until(lambda: host.condition("web", "Accepted").get("reason") == "SignerUnknown")
        hand_over(host, statement(1, B, A, soon))
        host.until_phase("web", "vdb", "Up")
        device.write(data)
    assert image.read_bytes()[:4096] == data
    host.until(lambda: host_condition(host, "Trusted").get("status") == "True")
    host.restart()
    push(host, 3, A, state="absent")
    host.until(lambda: host.condition("web", "Accepted").get("reason") == "SignerUnknown")
    host.until_phase("web", "vda", "Up")
    push(host, 4, B, state="absent")
    host.until_guest("web", "Down")


def test_silence_shows_in_the_hosts_status(host: Bench) -> None:
    host.until(lambda: host_condition(host, "Fresh").get("reason") == "TrustStale")
    now = datetime.now(UTC)
    hand_over(host, statement(1, A, A, now + timedelta(days=1)))
    host.until(lambda: host_condition(host, "Fresh").get("status") == "True")
    hand_over(host, statement(2, A, A, now - timedelta(seconds=1)))
    host.until(lambda: host_condition(host, "Fresh").get("reason") == "TrustStale")
    assert host_condition(host, "Trusted")["status"] == "True"
    hand_over(host, statement(1, A, A, now + timedelta(days=1)))
    host.until(lambda: host_condition(host, "Trusted").get("reason") == "StaleGeneration")


def test_keys_that_cannot_be_used_are_told_and_disks_come_up_from_the_store(host: Bench, tmp_path: Path) -> None:
    push(host, 1, A, loop_disk("vda", host.image("web")))
    host.until_phase("web", "vda", "Up")
    (tmp_path / "trust/0.pub").write_text("rubbish")
    host.restart()
    host.until_phase("web", "vda", "Up")
    host.until(lambda: host_condition(host, "Trusted").get("reason") == "TrustUnusable")
    folder(tmp_path / "trust", A)
    host.restart()
    push(host, 2, A, state="absent")
    host.until_guest("web", "Down")
