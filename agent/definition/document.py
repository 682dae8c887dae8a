"""From bytes to an element tree, without trusting a byte of it."""

import re
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import cast

from lxml import etree

from agent.definition.model import DocumentRejected, Finding, Limits
from reconcilers.reason import Reason

_PARSER = etree.XMLParser(
    resolve_entities=False,
    no_network=True,
    load_dtd=False,
    dtd_validation=False,
    attribute_defaults=False,
    huge_tree=False,
    recover=False,
    remove_comments=True,
    remove_pis=True,
    collect_ids=False,
    encoding="utf-8",
)

line_of: "Callable[[etree._Element], int | None]" = attrgetter("sourceline")
"""The line of an element's start tag in the text."""

_COUNT = etree.XPath("count(//*)")
_BOM = b"\xef\xbb\xbf"
_DECLARATION = re.compile(rb"\s*<\?xml\s[^>]*?\?>")
_ENCODING = re.compile(rb"""\sencoding\s*=\s*["']([^"']*)["']""")
_DOCTYPE = re.compile(rb"(?>\s+|<\?.*?\?>|<!--.*?-->)*+<!DOCTYPE", re.DOTALL)


def text_of(document: bytes, limits: Limits) -> bytes:
    """Check size and encoding, which must hold before anything reads the document; a byte order mark is taken off.

    Raises:
        DocumentRejected: DocumentTooLarge or NotUtf8.
    """
    if len(document) > limits.max_bytes:
        raise _rejected(
            Reason.DOCUMENT_TOO_LARGE,
            f"the document has more than {limits.max_bytes} bytes, which is the limit; send a smaller definition",
        )
    try:
        document.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _rejected(
            Reason.NOT_UTF8,
            f"byte {error.start} of the document is not UTF-8 ({error.reason}); save the document as UTF-8",
            line=document.count(b"\n", 0, error.start) + 1,
        ) from error
    return document.removeprefix(_BOM)


def parse_xml(document: bytes, limits: Limits, *, several: bool = False) -> "etree._Element":
    """Parse XML that `text_of` has passed.

    Args:
        document: The text, its byte order mark taken off.
        limits: `max_depth` and `max_parts` are checked here.
        several: Accept one root element after the other, as `virt-install --print-xml` writes them; they come
            wrapped in a `<domains>` element.

    Raises:
        DocumentRejected: NotUtf8 for another declared encoding, DoctypeForbidden, MalformedXml, TooDeep, and
            DocumentTooLarge for too many elements.
    """
    body = _without_declaration(document)
    if doctype := _DOCTYPE.match(body):
        raise _rejected(
            Reason.DOCTYPE_FORBIDDEN,
            "the document has a DOCTYPE, which can declare entities and read files; remove it, libvirt needs none",
            line=body.count(b"\n", 0, doctype.end()) + 1,
        )
    try:
        root = etree.fromstring(body, _PARSER)
    except etree.XMLSyntaxError as error:
        if several and "Extra content at the end" in error.msg:
            return parse_xml(b"<domains>" + body + b"</domains>", limits)
        raise _malformed(error) from None
    if root.getroottree().docinfo.internalDTD is not None:  # what the pattern above should have seen
        raise _rejected(Reason.DOCTYPE_FORBIDDEN, "the document has a DOCTYPE; remove it", line=1)
    if _deeper_than(limits.max_depth)(root):
        raise _rejected(
            Reason.TOO_DEEP,
            f"the document is nested deeper than {limits.max_depth} elements; send what `virsh dumpxml` prints",
        )
    if (elements := int(cast("float", _COUNT(root)))) > limits.max_parts:
        raise _rejected(
            Reason.DOCUMENT_TOO_LARGE,
            f"the document has {elements} elements and the limit is {limits.max_parts}; send a smaller definition",
        )
    return root


def _without_declaration(document: bytes) -> bytes:
    """The document with its XML declaration blanked out, so that neither its place nor its encoding matters.

    Templates put line breaks before it; and the text is known to be UTF-8, whatever the declaration says.
    """
    declaration = _DECLARATION.match(document)
    if declaration is None:
        return document
    encoding = _ENCODING.search(declaration[0])
    if encoding and encoding[1].lower() not in {b"utf-8", b"utf8", b"us-ascii", b"ascii"}:
        raise _rejected(
            Reason.NOT_UTF8,
            f"the XML declares the encoding {encoding[1][:40].decode()!r}; save it as UTF-8 and declare that",
            line=1,
        )
    return b"\n" * declaration[0].count(b"\n") + document[declaration.end() :]


def _malformed(error: etree.XMLSyntaxError) -> DocumentRejected:
    if "Excessive depth" in error.msg:  # libxml2's own limit, which has no code of its own
        return _rejected(Reason.TOO_DEEP, f"{error.msg}; send what `virsh dumpxml` prints", line=error.lineno)
    message = f"the XML is not well-formed: {' '.join(error.msg.split())}; mend it there"
    return _rejected(Reason.MALFORMED_XML, message, line=error.lineno)


@cache
def _deeper_than(depth: int) -> etree.XPath:
    return etree.XPath("boolean(" + "/*" * (depth + 1) + ")")


def _rejected(reason: Reason, message: str, *, line: int | None = None) -> DocumentRejected:
    return DocumentRejected(Finding(reason, message, "/", line))
