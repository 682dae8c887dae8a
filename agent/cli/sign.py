"""`tapster sign`: signatures on documents and statements, without a broker."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.bus.topics import Scope
from agent.cli.push_files import content, read_definitions
from agent.definition import DocumentRejected
from agent.fleet.delivery import compose
from agent.fleet.order import RefusedError
from agent.settings import Settings
from agent.strict_json import read_json
from agent.trust.dsse import Envelope, read_envelope
from agent.trust.private_key import PrivateKey
from agent.trust.seal import Seal, signed


def seal(
    file: Path,
    signers: Sequence[PrivateKey],
    *,
    host: str | None,
    group: str | None,
    generation: int,
    out: Path | None,
    settings: Settings,
) -> int:
    """Sign the definition of one guest for one host or group; returns the exit code."""
    try:
        definitions = read_definitions([file], settings)
        if len(definitions) != 1:
            return refuse(f"{file}: it has {len(definitions)} guests; sign each one's definition by itself")
        document = compose(definitions[0].guest, generation, definitions[0].xml)
        scope = Scope("host", host) if host else Scope("group", group or "")
        return write(Seal(settings.fleet, tuple(signers)).close(document, scope), out)
    except RefusedError as error:
        return refuse(str(error))


def cosign(file: Path, signers: Sequence[PrivateKey], *, out: Path | None, settings: Settings) -> int:
    """Add signatures to what is signed already; returns the exit code. What it says is shown, since that is signed."""
    try:
        envelope = read_envelope_file(file, settings)
    except RefusedError as error:
        return refuse(str(error))
    sys.stderr.write(f"signing {envelope.payload_type}:\n{_readable(envelope)}\n")
    return write(signed(envelope, signers).encode(), out)


def read_envelope_file(file: Path, settings: Settings) -> Envelope:
    """The envelope in a file.

    Raises:
        RefusedError: It can't be read, or is none.
    """
    try:
        return read_envelope(read_json(content(file, settings).decode()))
    except (DocumentRejected, UnicodeDecodeError) as error:
        raise RefusedError(f"{file}: {error}") from error


def write(payload: bytes, out: Path | None) -> int:
    """Write what was signed to a new file or, without one, to standard output."""
    if out is None:
        sys.stdout.write(f"{payload.decode()}\n")
        return 0
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        return refuse(f"{out}: can't be made: {error.strerror}; name a file that is not there yet")
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(payload + b"\n")
    return 0


def refuse(words: str) -> int:
    """Say why nothing is done."""
    sys.stderr.write(f"tapster: {words}\n")
    return 1


def _readable(envelope: Envelope) -> str:
    """The payload in ASCII: whatever it holds, a terminal shows it and acts upon none of it."""
    try:
        return json.dumps(json.loads(envelope.payload), indent=2)
    except ValueError:
        return ascii(envelope.payload)
