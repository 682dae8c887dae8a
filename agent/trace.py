"""Trace ids: what ties together all that one trigger set off, across guests, disks and hosts.

The form is W3C Trace Context (https://www.w3.org/TR/trace-context/): who pushes a document may give its message the
user property `traceparent`, and finds its trace id in every event that comes of it.
"""

import itertools
import re
import secrets
from collections.abc import Mapping

PROPERTY = "traceparent"

_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")

_traces = itertools.count(1 + secrets.randbits(127))
_spans = itertools.count(1 + secrets.randbits(63))
"""A trace has to differ from all others and a span from those of its trace, and neither is a secret: so both are
counted on from one random number. Asking the kernel for each takes 50 µs."""


def new_trace() -> str:
    """A trace id for what begins here."""
    return f"{next(_traces):032x}"


def trace_of(properties: Mapping[str, str]) -> str:
    """The trace id that a message carries; a new one where it carries none that is valid."""
    parent = _PARENT.fullmatch(properties.get(PROPERTY, ""))
    if parent is None or parent[0].startswith("ff") or not (int(parent[1], 16) and int(parent[2], 16)):
        return new_trace()
    return parent[1]


def traceparent(trace_id: str) -> str:
    """The header for something that happened within a trace: a span of its own, sampled."""
    return f"00-{trace_id}-{next(_spans):016x}-01"
