"""An attempt that was turned away, as a value and as the row of the store that keeps it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

from agent.bus.topics import Scope
from agent.definition import Finding
from agent.document import digest
from agent.status import now
from reconcilers.reason import Reason

_REASONS = {reason.value: reason for reason in Reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An attempt that was turned away, so that status can tell it after a restart too.

    Attributes:
        scope: The host or the group whose topic it came on.
        guest: The guest that the topic names.
        sha256: Hex digest of the payload.
        reason: The first finding's word, or that of a stale or conflicting generation.
        message: The first finding's sentence.
        findings: All findings.
        at: When it arrived first.
    """

    scope: Scope
    guest: str
    sha256: str
    reason: Reason
    message: str
    findings: tuple[Finding, ...] = ()
    at: datetime

    def repeats(self, other: "Rejection | None") -> bool:
        """Whether the other one turned the same payload away for the same things, earlier."""
        return other is not None and replace(self, at=other.at) == other

    @property
    def row(self) -> tuple[object, ...]:
        """Its columns: scope_kind, scope_name, guest, sha256, reason, message, findings, at."""
        findings = [(one.reason, one.message, one.path, one.line) for one in self.findings]
        return (
            *(self.scope.kind, self.scope.name, self.guest),
            *(self.sha256, self.reason.value, self.message, json.dumps(findings), self.at.isoformat()),
        )

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Self:
        """Read it back."""
        kind, name, guest, sha256, reason, message, findings, at = row
        return cls(
            scope=Scope(kind, name),
            guest=guest,
            sha256=sha256,
            reason=_reason(reason),
            message=message,
            findings=tuple(Finding(_reason(word), *rest) for word, *rest in json.loads(findings)),
            at=datetime.fromisoformat(at),
        )

    @classmethod
    def of(cls, payload: bytes, findings: Sequence[Finding], *, scope: Scope, guest: str) -> Self:
        """The rejection of a payload for at least one finding, at this moment."""
        first = findings[0]
        return cls(
            scope=scope,
            guest=guest,
            sha256=digest(payload),
            reason=first.reason,
            message=first.message,
            findings=tuple(findings),
            at=now(),
        )


def _reason(word: str) -> Reason:
    """The reason of that word, or a general one: a newer version may have known more of them before a downgrade."""
    return _REASONS.get(word, Reason.INVALID_DOCUMENT)
