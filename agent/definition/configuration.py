"""Guest configuration files of xm and xl (xl.cfg(5)), read as data.

xm's files were Python programs, and xl's look like them. Nothing is executed here: of a file's assignments only
those to the guest's name and disks are read, and they must be literal. One that is computed, or that depends on an
`if`, is a fault with its line, for its value can't be known.
"""

import re
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import NamedTuple

from agent.definition.classification import Handling
from agent.definition.disk import define
from agent.definition.domain import count_findings, name_findings, without_duplicates
from agent.definition.model import DocumentRejected, Finding, GuestDefinition, Limits
from agent.definition.text import Claim, DiskText
from agent.definition.xen import disk_from
from reconcilers.reason import Reason
from reconcilers.spec import GUEST_NAME

_TOKEN = re.compile(
    r"""
      (?P<blank>(?:[ \t\r\f]|\\\r?\n|\#[^\n]*)+)
    | (?P<newline>\n)
    | (?P<string>[rRuU]?(?:\"{3}(?:[^"\\]|\\.|"(?!""))*+(?:\"{3})?|'{3}(?:[^'\\]|\\.|'(?!''))*+(?:'{3})?
                 |"(?:[^"\\\n]|\\.)*+"?|'(?:[^'\\\n]|\\.)*+'?))
    | (?P<word>[^\W\d][\w.]*)
    | (?P<number>\d\w*)
    | (?P<sign>\+=|==|.)
    """,
    re.VERBOSE | re.DOTALL,
)
"""Every text splits into these, and in linear time: a string that nobody closes ends where it must."""

_STRING = re.compile(r"""(?P<prefix>[rRuU]?)(?P<quote>"{3}|'{3}|"|')(?P<body>.*)(?P=quote)""", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|([0-7]{1,3})|(\n)|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_BRACKETS = {"[": 1, "(": 1, "{": 1, "]": -1, ")": -1, "}": -1}

_DRIVES = {"cdrom": ("hdc", "cdrom"), "fda": ("fda", "floppy"), "fdb": ("fdb", "floppy")}
"""Settings of xend's first years that are a drive each: target and device."""

_READ = frozenset({"name", "disk", *_DRIVES})


class _Token(NamedTuple):
    kind: str
    text: str
    line: int
    indented: bool


class _Assignment(NamedTuple):
    """One `name = value`. `value` is None where it can't be known without running the file."""

    name: str
    adds: bool
    value: list[Claim] | None
    line: int


def guest_from_configuration(document: str, *, name: str | None, limits: Limits) -> GuestDefinition:
    """Read one guest configuration file.

    Args:
        document: The file's text.
        name: What the guest is called elsewhere; may stand in for a missing name.
        limits: `max_disks` is checked here.

    Raises:
        DocumentRejected: DocumentTooLarge for too many words, NotADomain for a text without any assignment,
            InvalidName, NameMismatch, TooManyDisks, and InvalidDocument for a name or disk list that is computed:
            all that apply.
    """
    if sum(1 for _ in islice(_TOKEN.finditer(document), limits.max_parts + 1)) > limits.max_parts:
        message = f"the text has more than {limits.max_parts} words and signs; send the guest's own configuration"
        raise DocumentRejected(Finding(Reason.DOCUMENT_TOO_LARGE, message, "/", None))
    assignments = list(_assignments(document))
    if not assignments:
        message = "the text is neither libvirt XML nor a guest configuration file; send what `virsh dumpxml` prints"
        if document.lstrip().startswith("{") and '"payloadType"' in document:
            message = "the text is signed, and only `tapster push` takes that, by itself; name what was signed here"
        raise DocumentRejected(Finding(Reason.NOT_A_DOMAIN, message, "/", 1))
    findings: list[Finding] = []
    values = {key: _value(key, assignments, findings) for key in ("name", "disk", *_DRIVES)}
    said = next(iter(values["name"]), Claim("", "name", None))
    drives = [(key, claim) for key in _DRIVES for claim in values[key] if claim.text]
    findings += name_findings(said, name)
    findings += count_findings(len(values["disk"]) + len(drives), limits, "disk")
    guest = said.text or name or ""
    if findings:
        raise DocumentRejected(*findings, guest=guest if GUEST_NAME.fullmatch(guest) else None)
    disks = [
        disk_from(claim.text, path=f"disk[{position}]", line=claim.line)
        for position, claim in enumerate(values["disk"], 1)
    ]
    disks += [_drive(key, claim) for key, claim in drives]
    defined = [define(disk, guest=guest) for disk in disks]
    return GuestDefinition(name=guest, disks=without_duplicates(defined, "disk[{}]/vdev"))


def _drive(key: str, claim: Claim) -> DiskText:
    target, device = _DRIVES[key]
    disk = DiskText(
        place=claim,
        source=claim,
        target=claim._replace(text=target),
        device=claim._replace(text=device),
        bare_is_device=True,
    )
    disk.names[Handling.HONOURED].append(key)
    return disk


def _value(key: str, assignments: list[_Assignment], findings: list[Finding]) -> list[Claim]:
    """The strings that a setting ends up with: the last assignment counts, and `+=` adds to it."""
    value: list[Claim] = []
    for assignment in assignments:
        if assignment.name != key:
            continue
        if assignment.value is None:
            message = (
                f"'{key}' is computed, conditional or not closed, and configuration files are read and never run; "
                f"write {key} = with its literal value"
            )
            findings.append(Finding(Reason.INVALID_DOCUMENT, message, key, assignment.line))
        value = [*(value if assignment.adds else []), *(assignment.value or [])]
    return value


def _assignments(document: str) -> Iterator[_Assignment]:
    """Every assignment in the file, of whatever name."""
    in_block = False
    for statement in _statements(document):
        first, *rest = statement
        if not first.indented:
            in_block = False
        root = first.text.partition(".")[0]
        if first.kind == "word" and rest and rest[0].text in {"=", "+="}:
            value = None if in_block else _literals(first.text, rest[1:])
            yield _Assignment(first.text, rest[0].text == "+=", value, first.line)
            continue
        in_block = in_block or statement[-1].text == ":"
        touched = {token.text for token, sign in pairwise(_outer(statement)) if sign.text in {"=", "+="}} | {root}
        for name in sorted(touched & _READ):
            yield _Assignment(name, adds=False, value=None, line=first.line)


def _statements(document: str) -> Iterator[list[_Token]]:
    """Tokens up to a line's end or a semicolon outside of brackets."""
    statement: list[_Token] = []
    depth = 0
    for token in _tokens(document):
        depth = max(0, depth + _BRACKETS.get(token.text, 0))
        ends = token.kind == "newline" or token.text == ";"
        if not ends:
            statement.append(token)
        elif statement and not depth:
            yield statement
            statement = []
    if statement:
        yield statement


def _outer(statement: list[_Token]) -> Iterator[_Token]:
    """What of a statement stands outside of brackets."""
    depth = 0
    for token in statement:
        change = _BRACKETS.get(token.text, 0)
        depth += change
        if not depth and not change:
            yield token


def _tokens(document: str) -> Iterator[_Token]:
    line, start_of_line = 1, 0
    for found in _TOKEN.finditer(document):
        kind, text = found.lastgroup or "sign", found[0]
        if kind != "blank":
            yield _Token(kind, text, line, indented=found.start() > start_of_line)
        if "\n" in text:
            line += text.count("\n")
            start_of_line = found.start() + text.rindex("\n") + 1


def _literals(name: str, tokens: list[_Token]) -> list[Claim] | None:
    """The strings of a literal: one, or a list or tuple of them. None if there is anything else in it."""
    if len(tokens) > 1 and (tokens[0].text, tokens[-1].text) in {("[", "]"), ("(", ")")}:
        tokens = tokens[1:-1]
    strings: list[Claim] = []
    joins = False
    for token in tokens:
        if token.text in {",", "+"} and strings:
            joins = token.text == "+"
        elif token.kind == "newline":
            continue
        elif (text := _text(token)) is None:
            return None
        elif joins:
            strings[-1] = strings[-1]._replace(text=strings[-1].text + text)
        else:
            strings.append(Claim(text, name, token.line))
            joins = True
    return strings


def _text(token: _Token) -> str | None:
    """What a string or number stands for; None for anything else, and for a string that is not closed."""
    if token.kind == "number":
        return token.text
    found = _STRING.fullmatch(token.text) if token.kind == "string" else None
    if found is None:
        return None
    return found["body"] if found["prefix"] in {"r", "R"} else _ESCAPE.sub(_unescaped, found["body"])


def _unescaped(escape: re.Match[str]) -> str:
    hexadecimal, octal, newline, letter = escape.groups()
    if hexadecimal or octal:
        return chr(int(hexadecimal, 16) if hexadecimal else int(octal, 8))
    return "" if newline else _ESCAPED.get(letter, letter)
