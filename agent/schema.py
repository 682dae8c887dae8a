"""The bus contract for machines: JSON Schemas (2020-12) of every payload, and AsyncAPI 3.0 of the whole.

Everything is made from the models that the agent itself reads and writes with, so that it can't fall behind them. See
https://www.asyncapi.com/docs/reference/specification/v3.0.0, with the MQTT bindings 0.2.0.
"""

from typing import Any, Literal, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from agent import __version__
from agent.bus.topics import EventKind
from agent.document import JsonDocument, SignedDocument
from agent.events import DATA, CloudEvent, EventType
from agent.preview import GuestPlan
from agent.rollout.record import BeforeDocument, RolloutDriver, RolloutPlan, RolloutState, RolloutWave
from agent.status import AgentState, GuestStatus, HostStatus
from agent.trust import dsse
from agent.trust.statement import CHAIN_MAX, TrustStatement

Schema = dict[str, Any]

_DOCUMENTS: dict[str, type[BaseModel]] = {
    "desired-document": JsonDocument,
    "signed-document": SignedDocument,
    "trust-statement": TrustStatement,
    "agent-state": AgentState,
    "guest-status": GuestStatus,
    "host-status": HostStatus,
    "guest-plan": GuestPlan,
    "rollout-plan": RolloutPlan,
    "rollout-wave": RolloutWave,
    "rollout-state": RolloutState,
    "rollout-driver": RolloutDriver,
    "rollout-before": BeforeDocument,
}
_READ = {JsonDocument, SignedDocument, TrustStatement}
_CHAIN: Schema = {"title": "TrustChain", "type": "array", "minItems": 1, "maxItems": CHAIN_MAX, "items": dsse.SCHEMA}
_ENVELOPES: dict[str, Schema] = {"signed-envelope": dsse.SCHEMA, "trust-chain": _CHAIN}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = "#/components/schemas/{model}"
_MQTT = "0.2.0"

_PARAMETERS = {
    "fleet": "The fleet: [a-z0-9][a-z0-9.-]{0,62}.",
    "host": "The host's name, which is its user name, client id and certificate's common name too.",
    "group": "A group of hosts; all is built in.",
    "guest": "The guest's name.",
    "client": "An operator's client id.",
    "rollout": "A rollout's id.",
    "wave": "A wave's number, from 1.",
    "digest": "SHA-256 of the message, in hex.",
}


def schemas() -> dict[str, Schema]:
    """The schema of each document and of each event, by name; each stands alone."""
    documents = {name: model.model_json_schema(mode=_mode(model)) for name, model in _DOCUMENTS.items()}
    events = {kind.value: _event(kind) for kind in EventType}
    return {name: {"$schema": _DIALECT, **schema} for name, schema in (documents | _ENVELOPES | events).items()}


def asyncapi() -> Schema:
    """The AsyncAPI document. Operations are the agent's: it receives documents and sends statuses and events."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:tapster:v1",
        "info": {
            "title": "tapster",
            "version": __version__,
            "description": "What guests should have goes to hosts, and how their disks are comes back. QoS 1.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"broker": {"host": "localhost:1883", "protocol": "mqtt", "protocolVersion": "5.0"}},
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": _messages(), "schemas": _components()},
    }


def _mode(model: type[BaseModel]) -> Literal["validation", "serialization"]:
    return "validation" if model in _READ else "serialization"


def _event(kind: EventType) -> Schema:
    envelope, data = CloudEvent.model_json_schema(), DATA[kind].model_json_schema(mode="serialization")
    definitions = data.pop("$defs", {})
    properties = envelope["properties"] | {"type": {"const": kind.value}, "data": data}
    return envelope | {"title": kind.value, "properties": properties, "$defs": definitions}


def _components() -> Schema:
    models: list[type[BaseModel]] = [*_DOCUMENTS.values(), *DATA.values(), CloudEvent]
    unique = [(model, _mode(model)) for model in dict.fromkeys(models)]
    _, together = models_json_schema(unique, ref_template=_REFERENCE)
    events = {
        kind.value: {
            "allOf": [
                _schema(CloudEvent.__name__),
                {"properties": {"type": {"const": kind.value}, "data": _schema(DATA[kind].__name__)}},
            ]
        }
        for kind in EventType
    }
    envelopes = {schema["title"]: schema for schema in _ENVELOPES.values()}
    return {**together["$defs"], **events, **envelopes, "Nonce": {"type": "string"}, "DomainXml": {"type": "string"}}


def _schema(name: str) -> Schema:
    return {"$ref": _REFERENCE.format(model=name)}


def _messages() -> Schema:
    json = {name: _message(name, _schema(model.__name__)) for name, model in _DOCUMENTS.items()}
    events = {
        kind.value: _message(kind.value, _schema(kind.value), "application/cloudevents+json") for kind in EventType
    }
    properties = {"generation": {"type": "string"}, "sha256": {"type": "string"}}
    raw = _message("domain-xml", _schema("DomainXml"), "application/xml")
    raw["headers"] = {"type": "object", "properties": properties, "description": "MQTT user properties."}
    request = _message("request", _schema("DomainXml"), "application/xml")
    request["description"] = "For plan: domain XML, with the guest's name as user property guest. For others: anything."
    request["bindings"] = {
        "mqtt": {
            "responseTopic": {"type": "string"},
            "correlationData": {"type": "string"},
            "bindingVersion": _MQTT,
        }
    }
    answers = {name: _message(name, {"type": "object"}) for name in ("resync-answer", "status-answer")}
    nonce = _message("nonce", _schema("Nonce"), "application/octet-stream")
    envelope = _message("signed-envelope", _schema("Envelope"), dsse.MEDIA_TYPE)
    envelope["description"] = "DSSE around a signed-document; its payloadType is application/vnd.tapster.desired+json."
    chain = _message("trust-chain", _schema("TrustChain"))
    chain["description"] = "DSSE around each trust-statement; their payloadType is application/vnd.tapster.trust+json."
    signed = {"signed-envelope": envelope, "trust-chain": chain}
    return json | events | answers | signed | {"domain-xml": raw, "request": request, "nonce": nonce}


def _message(name: str, payload: Schema, content: str = "application/json") -> Schema:
    return {"name": name, "contentType": content, "payload": payload}


_HOST = "hosts/{host}"
_ROLLOUT = "rollouts/{rollout}"
_DESIRED = ["domain-xml", "desired-document", "signed-envelope"]
_EVENTS = {kind: [event.value for event in EventType if event.kind == kind] for kind in get_args(EventKind)}

# Name, address under the prefix, what it is for, its messages.
_CHANNELS: list[tuple[str, str, str, list[str]]] = [
    ("agent", f"{_HOST}/agent", "Birth, farewell and will. Retained.", ["agent-state"]),
    ("host-desired", f"{_HOST}/desired/guests/{{guest}}", "What one host shall do. Retained.", _DESIRED),
    ("group-desired", "groups/{group}/desired/guests/{guest}", "What a group's hosts shall do. Retained.", _DESIRED),
    ("trust", "trust", "By which the fleet's keys hand over. Retained.", ["trust-chain"]),
    ("host-status", f"{_HOST}/status/host", "The host at a glance. Retained.", ["host-status"]),
    ("guest-status", f"{_HOST}/status/guests/{{guest}}", "One guest on one host. Retained.", ["guest-status"]),
    *((f"{kind}-events", f"{_HOST}/events/{kind}", "What happened.", names) for kind, names in _EVENTS.items()),
    *((f"{verb}-request", f"{_HOST}/cmd/{verb}", "A request.", ["request"]) for verb in ("plan", "resync", "status")),
    ("replies", "operators/{client}/replies", "Answers.", ["guest-plan", "resync-answer", "status-answer"]),
    ("sync", f"{_HOST}/sync", "The agent's nonce to itself: all that is retained has come.", ["nonce"]),
    ("operator-sync", "operators/{client}/sync", "The same for an operator.", ["nonce"]),
    ("rollout-plan", f"{_ROLLOUT}/plan", "Operators to each other: what is rolled out. Retained.", ["rollout-plan"]),
    ("rollout-wave", f"{_ROLLOUT}/waves/{{wave}}", "Which hosts get it together. Retained.", ["rollout-wave"]),
    ("rollout-before", f"{_ROLLOUT}/before/{{digest}}", "What hosts had before. Retained.", ["rollout-before"]),
    ("rollout-state", f"{_ROLLOUT}/state", "Where it stands. Retained.", ["rollout-state"]),
    ("rollout-driver", f"{_ROLLOUT}/driver", "Who drives it, and the will of that. Retained.", ["rollout-driver"]),
]

_OPERATORS = {
    *("replies", "operator-sync"),
    *("rollout-plan", "rollout-wave", "rollout-before", "rollout-state", "rollout-driver"),
}
"""Channels that no agent has anything to do with, or only as an answer says."""

_RECEIVED = {"host-desired", "group-desired", "trust", "plan-request", "resync-request", "status-request", "sync"}
_RETAINED = {"agent", "host-desired", "group-desired", "host-status", "guest-status"}
_ANSWERS = {"plan-request": "guest-plan", "resync-request": "resync-answer", "status-request": "status-answer"}


def _channels() -> Schema:
    channels: Schema = {}
    for name, address, purpose, messages in _CHANNELS:
        whole = f"tapster/v1/{{fleet}}/{address}"
        channels[name] = {
            "address": whole,
            "description": purpose,
            "parameters": {one: {"description": text} for one, text in _PARAMETERS.items() if f"{{{one}}}" in whole},
            "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in messages},
        }
    return channels


def _operations() -> Schema:
    operations: Schema = {}
    for name, *_ in _CHANNELS:
        if name in _OPERATORS:
            continue
        action = "receive" if name in _RECEIVED else "send"
        binding: Schema = {"qos": 1, "bindingVersion": _MQTT}
        if action == "send":
            binding["retain"] = name in _RETAINED
        operations[f"{action}-{name}"] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{name}"},
            "bindings": {"mqtt": binding},
        }
        if answer := _ANSWERS.get(name):
            messages = [{"$ref": f"#/channels/replies/messages/{answer}"}]
            operations[f"{action}-{name}"]["reply"] = {"channel": {"$ref": "#/channels/replies"}, "messages": messages}
    return operations
