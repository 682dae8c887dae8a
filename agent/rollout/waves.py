"""Which hosts get a change together. Pure."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent.fleet.targets import Target

_SHARE = re.compile(r"(\d{1,7})(%?)")
_WHOLE = 100


class ShareError(ValueError):
    """The text is neither a number of hosts nor a share of them."""


@dataclass(frozen=True, slots=True)
class Share:
    """A number of hosts, or a share of all of them in percent."""

    number: int
    percent: bool

    def at_least_one_of(self, hosts: int) -> int:
        """How many that is, rounded up: a wave that has nobody would never come to an end."""
        return max(1, math.ceil(hosts * self.number / _WHOLE) if self.percent else self.number)

    def at_most_of(self, hosts: int) -> int:
        """How many that is, rounded down: a limit of 2 % of ten hosts is none."""
        return hosts * self.number // _WHOLE if self.percent else self.number


def parse_share(text: str) -> Share:
    """Read `10%` or `25`.

    Raises:
        ShareError: It is neither, or more than 100 %.
    """
    found = _SHARE.fullmatch(text.strip())
    if not found or (found[2] and int(found[1]) > _WHOLE):
        raise ShareError(f"{text!r} is neither a number of hosts nor a share of them; write for example 25 or 10%")
    return Share(int(found[1]), bool(found[2]))


def split(targets: Sequence[Target], canary: int, wave: Share) -> list[list[str]]:
    """Hosts by wave. Those that are online come first, so that the first wave has something to show.

    Args:
        targets: The hosts.
        canary: How many the first wave has; 0 makes it one like the others.
        wave: How many each later one has.
    """
    hosts = [target.host for target in sorted(targets, key=lambda one: (not one.online, one.host))]
    first, rest = hosts[:canary], hosts[canary:]
    size = wave.at_least_one_of(len(hosts))
    waves = [first] if first else []
    return waves + [rest[start : start + size] for start in range(0, len(rest), size)]
