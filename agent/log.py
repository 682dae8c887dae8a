"""The log: one event a line with fields: to systemd's journal, as JSON for machines, as text for a person.

What concerns a disk is logged within `structlog.contextvars.bound_contextvars(guest=…, target=…, step=…)`, so that
every line below carries them, those of libraries too. Tasks and `asyncio.to_thread` inherit the fields.
"""

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import Processor

from agent import journal

LogFormat = Literal["auto", "journal", "json", "text"]


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
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *fields,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    to_journal = format == "journal" or (format == "auto" and journal.is_connected(stream))
    handler = journal.JournalHandler() if to_journal else logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=fields,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_text(colors=terminal) if as_text else _json()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)


def _text(*, colors: bool) -> list[Processor]:
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]


def _json() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
