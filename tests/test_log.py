"""The log: fields on every line, libraries included, JSON for machines and text for people."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent import log
from agent.log import configure


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    chain = list(log._chain)
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)
    log._chain[:] = chain  # loggers that have written a line keep the list
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_logger_that_has_written_a_line_follows_the_next_configuration() -> None:
    first, second = io.StringIO(), io.StringIO()
    logger = structlog.get_logger("agent.controller")
    configure("info", "json", stream=first)
    logger.info("one")
    configure("info", "text", stream=second)
    logger.info("two")
    assert [line["event"] for line in lines(first)] == ["one"]
    assert "two" in second.getvalue()
    assert "{" not in second.getvalue()


def test_a_line_is_json_away_from_a_terminal_and_has_the_bound_fields() -> None:
    stream = io.StringIO()
    configure("info", stream=stream)
    with structlog.contextvars.bound_contextvars(guest="vm1", target="vda", step="attach"):
        structlog.get_logger("agent.controller").info("attached", path=Path("/dev/loop7"))
    (line,) = lines(stream)
    assert datetime.fromisoformat(line.pop("timestamp")).utcoffset() == timedelta(0)
    assert line == {
        "event": "attached",
        "level": "info",
        "logger": "agent.controller",
        "guest": "vm1",
        "target": "vda",
        "step": "attach",
        "path": "/dev/loop7",
    }


def test_a_library_goes_the_same_way() -> None:
    stream = io.StringIO()
    configure("info", stream=stream)
    with structlog.contextvars.bound_contextvars(guest="vm1"):
        logging.getLogger("mqtt").warning("%s is gone", "broker", extra={"attempt": 3})
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["guest"], line["attempt"]) == ("broker is gone", "warning", "vm1", 3)


def test_an_exception_is_one_line() -> None:
    stream = io.StringIO()
    configure("info", stream=stream)
    try:
        Path("/nowhere").stat()
    except FileNotFoundError:
        structlog.get_logger().exception("failed")
    (line,) = lines(stream)
    assert line["exception"].endswith("No such file or directory: '/nowhere'")


def test_the_level_can_be_changed_while_running() -> None:
    stream = io.StringIO()
    log = structlog.get_logger("agent")
    configure("warning", stream=stream)
    log.info("hidden")
    configure("debug", stream=stream)
    log.debug("shown")
    assert [line["event"] for line in lines(stream)] == ["shown"]


def test_a_terminal_gets_text_unless_json_is_asked_for() -> None:
    terminal = Terminal()
    configure("info", stream=terminal)
    structlog.get_logger().info("attached", guest="vm1")
    assert "attached" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    asked = Terminal()
    configure("info", "json", stream=asked)
    structlog.get_logger().info("attached")
    assert lines(asked)[0]["event"] == "attached"


def test_text_in_a_file_has_no_colours() -> None:
    stream = io.StringIO()
    configure("info", "text", stream=stream)
    structlog.get_logger().info("attached", guest="vm1")
    assert "\x1b" not in stream.getvalue()
    assert "guest=vm1" in stream.getvalue()
