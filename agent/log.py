"""The log: one event a line with fields: to systemd's journal, as JSON for machines, as text for a person.

What concerns a disk is logged within `structlog.contextvars.bind_contextvars(guest=…, target=…, step=…)`, so that
every line below carries them, those of libraries too. Tasks and `asyncio.to_thread` inherit the fields.
"""

import json
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, NoReturn, TextIO

import structlog
from structlog.typing import Processor

from agent import journal

LogFormat = Literal["auto", "journal", "json", "text"]


_chain: list[Processor] = []
"""What every line goes through. Loggers keep it from their first line on, so it is changed and never replaced."""


def configure(level: str, format: LogFormat = "auto", stream: TextIO | None = None) -> None:  # noqa: A002 - its name
    """Route structlog and the standard library's logging to one stream. Calling it again changes both.

    Args:
        level: The least important level that is shown: debug, info, warning or error.
        format: How a line looks; auto is text when the stream is a terminal, records with fields when it leads to
            systemd's journal, and else JSON.
        stream: Where the lines go; standard error, if not given.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    as_text = format == "text" or (format == "auto" and terminal)
    fields: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderers = _text(colors=terminal) if as_text else _json()
    to_journal = format == "journal" or (format == "auto" and journal.is_connected(stream))
    handler = journal.JournalHandler() if to_journal else _LineHandler(stream)
    _chain[:] = [
        structlog.stdlib.filter_by_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        *fields,
        *renderers,
        _straight_to(handler.write),
    ]
    structlog.configure(
        processors=_chain,
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *fields],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)


class _LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream, as long as it takes any."""

    def write(self, line: str) -> None:
        self.acquire()
        try:
            with suppress(OSError, ValueError):  # a full disk or a closed pipe must not end the work that is told of
                self.stream.write(line + self.terminator)
                self.stream.flush()
        finally:
            self.release()


def _straight_to(write: Callable[[str], None]) -> Processor:
    """The end of our own lines; a record of the standard library on the way would cost three times what a line does."""

    def end(_logger: object, _level: str, line: Any) -> NoReturn:
        write(line)
        raise structlog.DropEvent

    return end


def _text(*, colors: bool) -> list[Processor]:
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]


def _json() -> list[Processor]:
    # `json.dumps` would make an encoder for each line.
    encode = json.JSONEncoder(default=str).encode
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(lambda line, **_: encode(line))]
