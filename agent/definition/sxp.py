"""Domains as xend kept them in /var/lib/xend and `xm list --long` printed them: S-expressions."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from agent.definition.disk import define
from agent.definition.domain import count_findings, name_findings, without_duplicates
from agent.definition.model import DocumentRejected, Finding, GuestDefinition, Limits
from agent.definition.text import Claim
from agent.definition.xen import disk_from_device
from reconcilers.reason import Reason
from reconcilers.spec import GUEST_NAME

_TOKEN = re.compile(
    r"""(?P<open>\()|(?P<close>\))|(?P<quoted>'(?:[^'\\]|\\.)*+'?|"(?:[^"\\]|\\.)*+"?)|(?P<word>[^\s()'"]+)""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ROOTS = frozenset({"domain", "vm"})
_DISKS = frozenset({"vbd", "tap", "tap2"})


class _List(NamedTuple):
    """`(name item item …)`; an item is a list or a word."""

    items: "list[_List | str]"
    line: int

    @property
    def name(self) -> str:
        """The first word."""
        return self.items[0] if self.items and isinstance(self.items[0], str) else ""

    @property
    def value(self) -> str:
        """The second word, empty where there is none."""
        return self.items[1] if len(self.items) > 1 and isinstance(self.items[1], str) else ""

    def lists(self) -> "Iterator[_List]":
        """The lists in it, one level down."""
        return (item for item in self.items if isinstance(item, _List))


def lists_in(document: str, limits: Limits) -> list[_List]:
    """Read a text's expressions; `xm list --long` prints one after the other.

    Raises:
        DocumentRejected: InvalidDocument for unbalanced parentheses, DocumentTooLarge, TooDeep.
    """
    open_lists = [_List([], 1)]
    for count, (kind, text, line) in enumerate(_tokens(document)):
        if count == limits.max_parts:
            raise _rejected(Reason.DOCUMENT_TOO_LARGE, f"the text has more than {count} words; send one domain", line)
        if kind == "open":
            open_lists.append(_List([], line))
            open_lists[-2].items.append(open_lists[-1])
        elif kind == "close":
            open_lists.pop()
        else:
            open_lists[-1].items.append(text)
        if len(open_lists) > limits.max_depth:
            raise _rejected(Reason.TOO_DEEP, f"lists are nested deeper than {limits.max_depth}; send one domain", line)
        if not open_lists:
            break
    if len(open_lists) != 1:
        message = "the parentheses are not balanced; send the whole of what `xm list --long` prints"
        raise _rejected(Reason.INVALID_DOCUMENT, message, None)
    return list(open_lists[0].lists())


def guest_from_sxp(domain: _List, *, name: str | None, limits: Limits) -> GuestDefinition:
    """Read one `(domain …)`.

    Args:
        domain: The expression.
        name: What the guest is called elsewhere; may stand in for a missing name.
        limits: `max_disks` is checked here.

    Raises:
        DocumentRejected: NotADomain, InvalidName, NameMismatch, TooManyDisks: all that apply.
    """
    if domain.name not in _ROOTS:
        message = f"the expression is a ({domain.name[:40]} …), not a (domain …); send what `xm list --long` prints"
        raise _rejected(Reason.NOT_A_DOMAIN, message, domain.line)
    said = next((Claim(item.value, "name", item.line) for item in domain.lists() if item.name == "name"), None)
    devices = [device for item in domain.lists() if item.name == "device" for device in item.lists()]
    disks = [device for device in devices if device.name in _DISKS]
    place = said or Claim("", "name", domain.line)
    guest = place.text or name or ""
    findings = [*name_findings(place, name), *count_findings(len(disks), limits, "device")]
    if findings:
        raise DocumentRejected(*findings, guest=guest if GUEST_NAME.fullmatch(guest) else None)
    texts = [
        disk_from_device(
            [(setting.name, setting.value) for setting in device.lists()], path=f"device[{position}]", line=device.line
        )
        for position, device in enumerate(disks, 1)
    ]
    defined = [define(text, guest=guest) for text in texts]
    return GuestDefinition(name=guest, disks=without_duplicates(defined, "device[{}]/dev"))


def _tokens(document: str) -> Iterator[tuple[str, str, int]]:
    """Parentheses and words: kind, text without quotes, line."""
    line, counted = 1, 0
    for found in _TOKEN.finditer(document):
        line += document.count("\n", counted, found.start())
        counted = found.start()
        kind, text = found.lastgroup or "word", found[0]
        yield kind, _ESCAPE.sub(r"\1", text[1:-1]) if kind == "quoted" else text, line


def _rejected(reason: Reason, message: str, line: int | None) -> DocumentRejected:
    return DocumentRejected(Finding(reason, message, "/", line))
