"""What a label selector that is being typed can go on with, so that it still means some host. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping

from agent.fleet.selector import KEY, TEXT, SelectorError, parse_selector

_BEGUN = re.compile(rf"(?P<label>{KEY})(?P<operator>==|=|!=)(?P<text>{TEXT})")
_LABEL = re.compile(KEY)
_TEXT = re.compile(TEXT)


def offers(typed: str, hosts: Iterable[Mapping[str, str]]) -> list[str]:
    """Selectors that begin with what was typed, sorted.

    As long as several labels are possible only their names are offered; of a single one also its texts, so that a
    shell never takes the name alone for all that there is to say.

    Args:
        typed: The beginning of a selector.
        hosts: The labels of each host.
    """
    before, comma, last = typed.rpartition(",")
    try:
        narrowed = parse_selector(before) if comma else None
    except SelectorError:  # a list in brackets, or none at all
        return []
    settled = {one.label for one in narrowed.requirements if one.wanted} if narrowed else set[str]()
    left = [labels for labels in hosts if narrowed is None or narrowed.matches(labels)]
    pairs = {pair for labels in left for pair in labels.items() if pair[0] not in settled and _is_well_formed(*pair)}
    return sorted(f"{before}{comma}{one}" for one in set(_conditions(last, pairs)))


def _conditions(last: str, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    if begun := _BEGUN.fullmatch(last):
        label, operator, text = begun.groups()
        yield from (f"{label}{operator}{one}" for name, one in pairs if name == label and one.startswith(text))
    elif last.startswith("!"):
        yield from (f"!{name}" for name, _ in pairs if name.startswith(last[1:]))
    else:
        fitting = [pair for pair in pairs if pair[0].startswith(last)]
        several = len({name for name, _ in fitting}) > 1
        yield from (f"{name}=" if several else f"{name}={text}" for name, text in fitting)


def _is_well_formed(label: str, text: str) -> bool:
    """A shell reads them, and anybody may have published them."""
    return bool(_LABEL.fullmatch(label) and _TEXT.fullmatch(text))
