"""Events: what the specification's own SDK reads out of them, and that no two are the same."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from cloudevents.core.formats.json import JSONFormat
from pydantic import ValidationError

from agent.bus.topics import Scope
from agent.definition import Finding
from agent.events import (
    Cause,
    CloudEvent,
    DiskPhaseChange,
    DocumentVerdict,
    EventSource,
    EventType,
    HostChange,
)
from agent.status import Phase
from reconcilers.reason import Reason

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def source() -> EventSource:
    return EventSource(host="db1", fleet="lab", session="5e55")


def disk_up() -> DiskPhaseChange:
    return DiskPhaseChange(
        guest="vm1",
        target="vda",
        previous=Phase.ATTACHING,
        phase=Phase.UP,
        reason=Reason.AS_DESIRED,
        message="attached",
        cause=Cause.DOCUMENT,
        duration_s=0.0042,
        trace_id=TRACE,
        device_path="/dev/loop7",
    )


def test_the_sdk_reads_a_disk_event(source: EventSource) -> None:
    kind, payload = source.event(EventType.DISK_PHASE, "vm1/vda", disk_up())
    event = JSONFormat().read(None, payload)
    assert kind == "disk"
    assert event.get_specversion() == "1.0"
    assert event.get_id() == "5e55-1"
    assert event.get_source() == "/tapster/lab/db1"
    assert event.get_type() == "tapster.disk.phase"
    assert event.get_subject() == "vm1/vda"
    assert event.get_datacontenttype() == "application/json"
    time = event.get_time()
    assert time is not None
    assert timedelta(0) <= datetime.now(UTC) - time < timedelta(minutes=1)
    assert time.utcoffset() == timedelta(0)
    assert event.get_data() == {
        "guest": "vm1",
        "target": "vda",
        "previous": "Attaching",
        "phase": "Up",
        "reason": "AsDesired",
        "message": "attached",
        "cause": "document",
        "duration_s": 0.0042,
        "trace_id": TRACE,
        "device_path": "/dev/loop7",
    }


def test_a_rejected_document_tells_every_finding(source: EventSource) -> None:
    findings = (Finding(Reason.MALFORMED_XML, "no end tag", "/domain", 3),)
    verdict = DocumentVerdict.of(
        Scope("group", "web"), "vm1", Reason.MALFORMED_XML, "no end tag", sha256="ab", findings=findings
    )
    kind, payload = source.event(EventType.GUEST_REJECTED, "vm1", verdict)
    data = JSONFormat().read(None, payload).get_data()
    assert kind == "guest"
    assert isinstance(data, dict)
    assert (data["scope"], data["scope_name"], data["generation"]) == ("group", "web", None)
    assert data["findings"] == [{"reason": "MalformedXml", "message": "no end tag", "path": "/domain", "line": 3}]


@pytest.mark.parametrize("type", list(EventType))
def test_every_type_names_a_topic_and_is_read_by_the_sdk(type: EventType, source: EventSource) -> None:  # noqa: A002
    kind, payload = source.event(type, "db1", HostChange(message="so it is"))
    assert kind in ("guest", "disk", "host")
    assert JSONFormat().read(None, payload).get_type() == type.value


def test_ids_count_up_within_a_session_and_differ_between_sessions() -> None:
    sessions = [EventSource(host="db1", fleet="lab", session=name) for name in ("a", "b")]
    events = [one.event(EventType.HOST_SYNCED, "db1", {"message": "x"}) for one in sessions for _ in range(3)]
    assert [json.loads(payload)["id"] for _, payload in events] == ["a-1", "a-2", "a-3", "b-1", "b-2", "b-3"]


def test_what_is_written_can_be_read_with_the_same_model(source: EventSource) -> None:
    _, payload = source.event(EventType.DISK_PHASE, "vm1/vda", disk_up())
    event = CloudEvent.model_validate_json(payload)
    assert DiskPhaseChange.model_validate(event.data) == disk_up()
    foreign = json.loads(payload) | {"traceparent": "00-x-y-01"}
    assert CloudEvent.model_validate(foreign).model_extra == {"traceparent": "00-x-y-01"}


@pytest.mark.parametrize("wrong", [{"duration_s": -1.0}, {"trace_id": "x"}, {"cause": "moon"}, {"colour": "red"}])
def test_data_outside_its_model_is_a_mistake(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DiskPhaseChange.model_validate(disk_up().model_dump() | wrong)
