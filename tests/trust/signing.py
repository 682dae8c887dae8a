"""Signed documents for tests, made by hand: what an operator's own tools would send."""

import json
from pathlib import Path
from typing import Any

from agent.trust.dsse import Envelope
from agent.trust.private_key import PrivateKey

FLEET = "lab"
DESIRED = "application/vnd.tapster.desired+json"
XML = "<domain><name>web</name></domain>"


def fields(**changes: Any) -> dict[str, Any]:
    """A present document of guest web for host db1."""
    plain = {
        "fleet": FLEET,
        "scope": "host:db1",
        "guest": "web",
        "generation": 1,
        "state": "present",
        "domain_xml": XML,
    }
    return {name: value for name, value in (plain | changes).items() if value is not ...}


def sealed(*keys: PrivateKey, payload_type: str = DESIRED, **changes: Any) -> Envelope:
    """An envelope around it, signed by these keys; a field that is `...` is left out."""
    envelope = Envelope(payload_type, json.dumps(fields(**changes)).encode())
    for key in keys:
        envelope = envelope.signed_by(key)
    return envelope


def folder(path: Path, *keys: PrivateKey) -> Path:
    """A folder that trusts these keys."""
    path.mkdir(mode=0o755, exist_ok=True)
    for file in path.iterdir():
        file.unlink()
    for number, key in enumerate(keys):
        (path / f"{number}.pub").write_text(key.public.pem)
    return path
