"""The definitions in files, each as the domain XML that goes on the bus, with what is wrong said before it is sent."""

import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from lxml import etree

from agent.cli.inspect import STDIN, read
from agent.definition import DocumentRejected, Finding, GuestDefinition, Limits, parse_file
from agent.definition.canonical import canonical
from agent.definition.document import parse_xml, text_of
from agent.definition.domain import domains_in
from agent.fleet.order import Definition, RefusedError
from agent.fleet.template import has_names
from agent.settings import Settings
from agent.strict_json import read_json
from agent.trust.dsse import is_envelope
from agent.trust.seal import Sealed, read_sealed

ENVELOPE_BYTES = 64 << 10
"""What signatures may add to a document, besides base64 and blanks."""


def read_definitions(files: Sequence[Path], settings: Settings) -> list[Definition]:
    """Read and check files. A disk that would be refused is a warning as long as the guest has another.

    Raises:
        RefusedError: A file can't be read, hosts would reject a document or all disks of a guest, or a guest stands
            in two places.
    """
    found = [definition for file in files for definition in _read(file, settings)]
    names = [definition.guest for definition in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RefusedError(f"guest {twice!r} is defined twice; push one definition of it")
    return found


def tell_of_braces(command: str, definitions: Sequence[Definition]) -> None:
    """Say which definitions look like templates, where they are taken as they are."""
    for definition in definitions:
        if definition.xml is not None and has_names(definition.xml):
            words = f"guest {definition.guest!r}: a source has braces, taken as they are without --template"
            sys.stderr.write(f"tapster {command}: {words}\n")


def is_sealed_file(file: Path, settings: Settings) -> bool:
    """Whether a file holds a signed document, a broken one included."""
    try:
        return is_envelope(read_json(content(file, settings).decode()))
    except (DocumentRejected, RefusedError, UnicodeDecodeError):
        return False


def read_sealed_file(file: Path, settings: Settings) -> Sealed:
    """The signed document that a file holds.

    Raises:
        RefusedError: It can't be read, it holds something else, or hosts would reject it.
    """
    try:
        sealed = read_sealed(content(file, settings), fleet=settings.fleet, limits=limits_of(settings))
    except DocumentRejected as rejected:
        raise RefusedError(_places(file, rejected.findings)) from rejected
    if sealed is None:
        raise RefusedError(f"{file}: it is not signed; push it with the definitions, or sign it with `tapster sign`")
    return sealed


def limits_of(settings: Settings) -> Limits:
    """What hosts with these settings take."""
    return Limits(
        max_bytes=settings.limits.document_bytes,
        max_disks=settings.limits.disks_per_guest,
        max_depth=settings.limits.xml_depth,
        max_layers=settings.limits.backing_layers,
    )


def content(file: Path, settings: Settings) -> bytes:
    """What a file holds, up to a bit more than any hosts would take: somebody may name an image by mistake.

    Raises:
        RefusedError: It can't be read.
    """
    most = settings.limits.document_bytes * 3 // 2 + ENVELOPE_BYTES
    try:
        return _from_stdin(sys.stdin.buffer, most) if file == STDIN else read(file, most)
    except OSError as error:
        raise RefusedError(f"{file}: can't be read: {error.strerror}; check its name and permissions") from error


@lru_cache(maxsize=1)
def _from_stdin(stream: BinaryIO, most: int) -> bytes:
    """What can be read only once, and is looked at twice: whether it is signed, and what it says."""
    return stream.read(most)


def _read(file: Path, settings: Settings) -> Iterator[Definition]:
    document, limits = content(file, settings), limits_of(settings)
    try:
        guests = parse_file(document, limits=limits)
        text = text_of(document, limits)
    except DocumentRejected as rejected:
        raise RefusedError(_places(file, rejected.findings)) from rejected
    if not text.lstrip().startswith(b"<"):
        yield from (_translated(file, guest) for guest in guests)
        return
    for guest, xml in zip(guests, _domains(text, limits), strict=True):
        _check(file, guest)
        yield Definition(guest.name, xml)


def _translated(file: Path, guest: GuestDefinition) -> Definition:
    """A guest of xm, xl or xend, as XML. All or nothing: a disk that is left out of a document is taken down."""
    findings = [finding for disk in guest.disks for finding in disk.refused]
    if findings:
        raise RefusedError(f"guest {guest.name!r}: not every disk can be served\n{_places(file, findings)}")
    return Definition(guest.name, canonical(guest).decode())


def _domains(text: bytes, limits: Limits) -> list[str]:
    """The XML of each domain in a file; as it stands where there is only one."""
    root = parse_xml(text, limits, several=True)
    domains = domains_in(root)
    if len(domains) <= 1 and root.tag == "domain":
        return [text.decode()]
    return [etree.tostring(domain, encoding="unicode", with_tail=False) for domain in domains]


def _check(file: Path, guest: GuestDefinition) -> None:
    findings = [finding for disk in guest.disks for finding in disk.refused]
    if not findings:
        return
    if not any(disk.spec for disk in guest.disks):
        raise RefusedError(f"guest {guest.name!r}: every disk would be refused\n{_places(file, findings)}")
    sys.stderr.write(f"tapster push: guest {guest.name!r}: disks will be refused\n{_places(file, findings)}\n")


def _places(file: Path, findings: Sequence[Finding]) -> str:
    return "\n".join(
        f"{file}{f':{finding.line}' if finding.line else ''}: {finding.reason}: {finding.message}"
        for finding in findings
    )
