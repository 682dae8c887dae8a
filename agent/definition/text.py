"""What was read of one disk, in XML or in a Xen string, before anything is decided."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.definition.classification import Handling
from agent.definition.model import Finding
from agent.definition.number import OutOfRange, decimal, number
from reconcilers.reason import Reason

_HANDLINGS = tuple(Handling)
_LONGEST_SHOWN = 80


class Claim(NamedTuple):
    """A piece of text and where it stands."""

    text: str
    path: str
    line: int | None


class LayerText(NamedTuple):
    """One image below another, as it was read."""

    source: Claim
    format: Claim


@dataclass(slots=True, kw_only=True)
class DiskText:
    """What was read of one disk, before anything is decided. What is absent, or empty, is None.

    Attributes:
        place: The disk's element or string.
        names: What was found, by what becomes of it; nothing is listed as refused, for that is in `findings`.
        limits: What `iotune` says, by name.
        drivers: Every place that names a driver or a format; `reason` is given for one that can't be read.
        layers: The images below the source, the uppermost first.
        bare_is_device: A path under /dev, or one that is not absolute, is a block device, as in xl.
    """

    place: Claim
    type: Claim | None = None
    device: Claim | None = None
    target: Claim | None = None
    source: Claim | None = None
    drivers: list[tuple[Claim, Reason]] = field(default_factory=list)
    cache: Claim | None = None
    io: Claim | None = None
    discard: Claim | None = None
    detect_zeroes: Claim | None = None
    limits: dict[str, Claim] = field(default_factory=dict)
    startup_policy: Claim | None = None
    logical_block_size: Claim | None = None
    slice_offset: Claim | None = None
    slice_size: Claim | None = None
    layers: list[LayerText] = field(default_factory=list)
    read_only: bool = False
    shareable: Claim | None = None
    bare_is_device: bool = False
    names: dict[Handling, list[str]] = field(default_factory=lambda: {handling: [] for handling in _HANDLINGS})
    unknown: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def refuse(self, reason: Reason, at: Claim | None, message: str) -> None:
        """Note one thing that keeps the disk from being served."""
        where = at or self.place
        self.findings.append(Finding(reason, message, where.path, where.line))

    def choice(self, what: str, claim: Claim | None, allowed: Iterable[str]) -> str | None:
        """One of a few words; None where there is none, and where it is another, which is refused."""
        if claim is None or claim.text in allowed:
            return claim and claim.text
        words = ", ".join(allowed)
        self.refuse(Reason.INVALID_VALUE, claim, f"{what} {shown(claim.text)} is not one of {words}")
        return None

    def number(self, what: str, claim: Claim | None, unit: str = "bytes") -> int | None:
        """A whole number; None where there is none, and where it can't be read, which is refused."""
        return self._read(decimal, what, claim, f"{unit} below 2^63, in decimal")

    def block_size(self, what: str, claim: Claim | None) -> int | None:
        """As `number`, in any base."""
        return self._read(number, what, claim, "bytes below 2^63; 4096, 0x1000 and 010000 are")

    def _read(self, read: Callable[[str], int], what: str, claim: Claim | None, wanted: str) -> int | None:
        if claim is None:
            return None
        try:
            return read(claim.text)
        except OutOfRange:
            self.refuse(Reason.INVALID_VALUE, claim, f"{what} {shown(claim.text)} is not a whole number of {wanted}")
            return None


def shown(text: str) -> str:
    """Foreign text in a message: quoted, control characters escaped, and no longer than a line."""
    return repr(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}...")
