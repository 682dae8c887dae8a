"""Takes secrets out of text that leaves the host: those that the settings name, and whatever looks like one."""

import re
from collections.abc import Iterator
from pathlib import Path

from agent.settings import Settings

HIDDEN = "(redacted)"

_SHORTEST = 4
"""A known secret shorter than this would take half of the text along; its assignments are found by their names."""

_PATTERNS = (
    re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(-----END \1-----|\Z)", re.DOTALL),
    # name = "value", name: value, "name": "value", name='value' as in TOML, YAML, JSON, XML and the journal
    re.compile(
        r"""(?i)(?<![a-z0-9])(?:pass(?:word|wd|phrase)?|secret|token|api_?key)["']?\s*[=:]\s*(?:"(?:\\.|[^"\\])*"|'[^']*'|[^\s,}>"']+)"""
    ),
    # what stands before the @ in a URL
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    # libvirt's secret and a domain's <auth> by usage
    re.compile(r"(?is)<(secret|auth)\b.*?(?:/>|</\1>)"),
)


class Redaction:
    """Text without the secrets of one host."""

    def __init__(self, secrets: Iterator[str]) -> None:
        known = sorted({one for one in secrets if len(one) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    @classmethod
    def of(cls, settings: Settings) -> "Redaction":
        """What the settings' files hold is known, and found wherever it stands."""
        return cls(_held(settings))

    def __call__(self, text: str) -> str:
        """The text, with `(redacted)` in place of each secret."""
        if self._known:
            text = self._known.sub(HIDDEN, text)
        for pattern in _PATTERNS:
            text = pattern.sub(HIDDEN, text)
        return text


def _held(settings: Settings) -> Iterator[str]:
    for file in (settings.broker.password_file, settings.broker.tls.key_file):
        if file is not None:
            yield from _lines(file)


def _lines(file: Path) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    yield from (line.strip() for line in text.splitlines() if not line.startswith("-----"))
