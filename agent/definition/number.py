"""Numbers as C's strtoull reads them: libvirt has base 0 for block sizes, and base 10 for limits and slices."""

import re

_NUMBER = re.compile(r"0[xX](?P<hex>[0-9a-fA-F]{1,16})|0(?P<octal>[0-7]{1,21})|(?P<decimal>[0-9]{1,19})")
_DECIMAL = re.compile(r"[0-9]{1,19}")
_BASES = {"hex": 16, "octal": 8, "decimal": 10}
_LARGEST = 2**63 - 1


class OutOfRange(ValueError):  # noqa: N818 - names the fault
    """The text is not a whole number from 0 to 2^63 - 1."""


def number(text: str) -> int:
    """Read `4096`, `0x1000` or `010000`.

    Raises:
        OutOfRange: If the text is anything else, or the number doesn't fit a file offset.
    """
    found = _NUMBER.fullmatch(text.strip())
    if found is None or found.lastgroup is None:
        raise OutOfRange(text)
    return _in_range(int(found[found.lastgroup], _BASES[found.lastgroup]), text)


def decimal(text: str) -> int:
    """Read `4096`, which `04096` is as well.

    Raises:
        OutOfRange: As `number`.
    """
    if _DECIMAL.fullmatch(text.strip()) is None:
        raise OutOfRange(text)
    return _in_range(int(text), text)


def _in_range(value: int, text: str) -> int:
    if value > _LARGEST:
        raise OutOfRange(text)
    return value
