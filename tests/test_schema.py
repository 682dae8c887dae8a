"""The contract for machines: it says what the agent says, and AsyncAPI's own schema finds nothing wrong with it."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from agent.bus.topics import (
    AgentTopic,
    CommandTopic,
    DesiredTopic,
    EventTopic,
    FleetTopics,
    HostStatusTopic,
    OperatorTopic,
    RolloutTopic,
    Scope,
    StatusTopic,
    SyncTopic,
    TopicError,
    TrustTopic,
)
from agent.cli.schema import run
from agent.definition import Finding
from agent.events import (
    DATA,
    Cause,
    DiskOutage,
    DiskPhaseChange,
    DocumentVerdict,
    EventSource,
    EventType,
    HostChange,
    PhaseChange,
)
from agent.schema import asyncapi, schemas
from agent.status import Phase, Status, now
from agent.trust.private_key import PrivateKey
from reconcilers.reason import Reason
from tests.test_readme import blocks
from tests.trust.signing import fields, sealed

# schemas/3.0.0-without-$id.json of the npm package @asyncapi/specs 6.11.1 (Apache-2.0), blanks removed.
OFFICIAL = Path(__file__).parent / "asyncapi-3.0.0.json.gz"

EXAMPLES = {"fleet": "f", "host": "h", "group": "g", "guest": "web", "client": "op-1"}
EXAMPLES |= {"rollout": "k3f9qa", "wave": "1", "digest": "0" * 64}


def faults(validator: Draft7Validator | Draft202012Validator, document: object) -> list[str]:
    return [f"{error.json_path}: {error.message}"[:300] for error in validator.iter_errors(document)]


def test_the_official_schema_finds_nothing_wrong() -> None:
    official = Draft7Validator(json.loads(gzip.decompress(OFFICIAL.read_bytes())))
    document = json.loads(json.dumps(asyncapi()))
    assert faults(official, document) == []
    broken = document | {"channels": {"agent": {"address": 5}}}
    assert faults(official, broken)


def test_every_reference_leads_somewhere() -> None:
    document = asyncapi()
    references = set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)))
    assert references
    for reference in references:
        found: Any = document
        for step in reference.split("/"):
            found = found[step]


def test_addresses_are_those_of_the_bus() -> None:
    topics = FleetTopics("f")
    parsed = {type(topics.parse(channel["address"].format(**EXAMPLES))) for channel in asyncapi()["channels"].values()}
    assert parsed == {
        *(DesiredTopic, AgentTopic, HostStatusTopic, StatusTopic),
        *(EventTopic, CommandTopic, SyncTopic, OperatorTopic, TrustTopic, RolloutTopic),
    }
    with pytest.raises(TopicError):
        topics.parse("tapster/v1/f/hosts/h/other")


def test_every_schema_is_one() -> None:
    for schema in schemas().values():
        Draft202012Validator.check_schema(schema)


def test_every_event_satisfies_its_schema() -> None:
    change: dict[str, Any] = {
        "guest": "web",
        "previous": None,
        "phase": Phase.UP,
        "reason": Reason.AS_DESIRED,
        "message": "m",
        "cause": Cause.DOCUMENT,
        "duration_s": 0.5,
    }
    finding = Finding(Reason.NOT_UTF8, "m", "/", 3)
    samples: dict[type[Status], Status] = {
        DiskPhaseChange: DiskPhaseChange(**change, target="vda", device_path=None),
        PhaseChange: PhaseChange(**change),
        DocumentVerdict: DocumentVerdict.of(Scope("host", "h"), "web", Reason.NOT_UTF8, "m", findings=(finding,)),
        DiskOutage: DiskOutage(
            began=now(), ended=None, reason=Reason.SERVER_LOST, message="m", guest="web", target="vda", duration_s=None
        ),
        HostChange: HostChange(message="m"),
    }
    source, known = EventSource(host="h", fleet="f", session="s"), schemas()
    for kind in EventType:
        event = json.loads(source.event(kind, "subject", samples[DATA[kind]]).payload)
        assert faults(Draft202012Validator(known[kind.value]), event) == []
        assert faults(Draft202012Validator(known[kind.value]), event | {"type": "other"})
        assert faults(Draft202012Validator(known[kind.value]), event | {"data": {}})


def test_the_readmes_statuses_satisfy_their_schema() -> None:
    for text in blocks("json"):
        assert faults(Draft202012Validator(schemas()["guest-status"]), json.loads(text)) == []


def test_desired_documents() -> None:
    validator = Draft202012Validator(schemas()["desired-document"])
    good = {"guest": "web", "generation": 1, "state": "present", "domain_xml": "<domain/>"}
    assert faults(validator, good) == []
    assert faults(validator, good | {"state": "gone"})
    assert faults(validator, good | {"more": 1})


def test_signed_documents_and_their_envelope() -> None:
    known, key = schemas(), PrivateKey.new()
    envelope, signed = Draft202012Validator(known["signed-envelope"]), Draft202012Validator(known["signed-document"])
    assert faults(envelope, sealed(key).as_json()) == []
    assert faults(envelope, sealed().as_json())
    assert faults(signed, fields()) == []
    assert faults(signed, fields(generation=...))
    assert faults(signed, fields(scope=...))


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    for whole in (False, True):
        assert run(asyncapi=whole) == 0
        assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(asyncapi() if whole else schemas()))
