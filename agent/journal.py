"""Log records for systemd's journal, field by field, so that `journalctl GUEST=vm1 TARGET=vda` finds them.

The protocol is the journal's own (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram a record, of lines NAME=value, or
NAME, the value's length in 64 bits and the value, where that has line breaks.
"""

import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

SOCKET = Path("/run/systemd/journal/socket")

PATIENCE_SECONDS = 1.0
"""How long a busy journal may hold a record up."""

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""The levels as syslog(3) counts them."""

_FIRST = ("guest", "target", "step")
"""What comes first in a message; context variables have no order of their own."""

_OWN = {"event", "level", "logger", "timestamp", "exception"}
"""Fields that the journal has other names for; the time it takes itself."""


def is_connected(stream: TextIO) -> bool:
    """Whether what is written to the stream ends up in the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # not a real file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def encode(fields: Mapping[str, object]) -> bytes:
    """A record as the journal takes it.

    Args:
        fields: An event's fields as structlog has them, with `event` and `level`.
    """
    ordered = dict.fromkeys([*(name for name in _FIRST if name in fields), *fields])
    others = {name: _text(fields[name]) for name in ordered if name not in _OWN}
    message = " ".join([str(fields["event"]), *(f"{name}={_shown(text)}" for name, text in others.items())])
    if exception := fields.get("exception"):
        message += f"\n{exception}"
    record = {
        "MESSAGE": message,
        "PRIORITY": str(_PRIORITIES.get(str(fields.get("level")), 6)),
        "SYSLOG_IDENTIFIER": "tapster",
        "LOGGER": str(fields.get("logger", "")),
        **{_name(name): text for name, text in others.items()},
    }
    return b"".join(_line(name, text.encode("utf-8", "replace")) for name, text in record.items())


class JournalHandler(logging.Handler):
    """Sends records to the journal, and to standard error what it does not take."""

    def __init__(self, path: Path = SOCKET) -> None:
        super().__init__()
        self._path = str(path)
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._channel.settimeout(PATIENCE_SECONDS)

    def emit(self, record: logging.LogRecord) -> None:
        """Format and send; the formatter makes the fields into JSON."""
        self.write(self.format(record))

    def write(self, line: str) -> None:
        """Send fields that were made into JSON."""
        try:
            self._channel.sendto(encode(json.loads(line)), self._path)
        except TimeoutError:  # journald hangs; a line less is better than disks that nobody looks after
            return
        except OSError:  # journald is restarting, or the record is larger than a datagram may be
            sys.stderr.write(line + "\n")


def _name(field: str) -> str:
    """A field's name: capitals, digits and underscores, not beginning with one that the journal trusts."""
    name = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in field.upper()).lstrip("_")
    return name[:64] if name and not name[0].isdigit() else f"FIELD_{name}"[:64]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _shown(text: str) -> str:
    return json.dumps(text) if " " in text or "\n" in text or not text else text


def _line(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"
