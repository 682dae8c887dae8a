"""One definition for a fleet of like hosts: `{host}` and the names of labels in its disks' source paths. Pure.

Only `<source file=…>` and `<source dev=…>` of disks are looked at, and only if the operator asked for it: a brace is a
good character in a path. `{{` and `}}` stand for a brace itself. What comes out is held to more than a path that was
written down: a label's text must not lead to another folder, and so to another tenant's image.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from lxml import etree

from agent.definition import DocumentRejected, Limits
from agent.definition.document import parse_xml, text_of

_NAME = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_UNSAFE = re.compile(r"[/\x00-\x1f\x7f]")
_ATTRIBUTES = ("file", "dev")


class TemplateError(Exception):
    """A source can't be filled in for a host. The message says which, why, and what would be right."""


def has_names(xml: str) -> bool:
    """Whether any source has braces that a template would fill in."""
    try:
        return any(_NAME.search(path) for _, _, path in _sources(_parse(xml)))
    except DocumentRejected:
        return False


def fill_in(xml: str, host: str, labels: Mapping[str, str]) -> str:
    """The definition for one host.

    Args:
        xml: A domain.
        host: What `{host}` stands for.
        labels: What the names of labels stand for; a label that is called `host` does not count.

    Raises:
        TemplateError: A name is not defined, or a path comes out that is not absolute and clean.
    """
    domain = _parse(xml)
    values = {**labels, "host": host}
    for source, attribute, path in _sources(domain):
        source.set(attribute, _filled(path, values, host))
    return etree.tostring(domain, encoding="unicode", with_tail=False)


def _parse(xml: str) -> "etree._Element":
    text, limits = xml.encode(), Limits(max_bytes=len(xml.encode()))
    return parse_xml(text_of(text, limits), limits)


def _sources(domain: "etree._Element") -> "Iterator[tuple[etree._Element, str, str]]":
    for source in domain.iterfind("./devices/disk//source"):
        for attribute in _ATTRIBUTES:
            if path := source.get(attribute):
                yield source, attribute, path


def _filled(path: str, values: Mapping[str, str], host: str) -> str:
    def replaced(found: "re.Match[str]") -> str:
        match found[0]:
            case "{{" | "}}":
                return found[0][0]
            case "{" | "}":
                raise TemplateError(
                    f"source {path!r} has a lone {found[0]!r}; write {found[0] * 2!r} for the character"
                )
        return _value(found[1], path, values, host)

    if not _NAME.search(path):
        return path
    filled = _NAME.sub(replaced, path)
    if not filled.startswith("/") or "\0" in filled or str(PurePosixPath(filled)) != filled or _climbs(filled):
        raise TemplateError(
            f"source {path!r} comes out as {filled!r} for host {host!r}, which is no clean absolute path (it "
            "begins with one / and has no empty, '.' or '..' part)"
        )
    return filled


def _climbs(path: str) -> bool:
    return ".." in PurePosixPath(path).parts or path.startswith("//")


def _value(name: str, path: str, values: Mapping[str, str], host: str) -> str:
    if name not in values:
        there = ", ".join(f"{{{one}}}" for one in sorted(values))
        raise TemplateError(f"source {path!r}: host {host!r} has no label {name!r}; defined for it are {there}")
    value = values[name]
    if not value or _UNSAFE.search(value):
        raise TemplateError(
            f"source {path!r}: label {name!r} of host {host!r} is {value!r}, which can't be part of a file's name; it "
            "must not be empty and not hold a slash or a control character"
        )
    return value
