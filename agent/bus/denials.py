"""What the broker has refused: it is left alone for a while, because mosquitto drops the connection besides."""

import itertools
import time
from collections.abc import Mapping

import structlog

from agent.bus.connection import DeniedError

log: structlog.stdlib.BoundLogger = structlog.get_logger()

DENIAL_SECONDS = 300.0
"""For so long nothing is sent to a topic that the broker refused; then its access list may have been mended."""


class Denials:
    """The topics that the broker refused lately, and the filters that it refused when it was asked last."""

    def __init__(self) -> None:
        self._topics: dict[str, tuple[float, str]] = {}
        self._filters: list[str] = []

    @property
    def sentence(self) -> str | None:
        """What the broker refuses, and what to do about it; None if nothing is known."""
        now = time.monotonic()
        lately = (sentence for until, sentence in self._topics.values() if until > now)
        return next(itertools.chain(self._filters, lately), None)

    def note(self, topic: str, error: DeniedError) -> None:
        """The broker refused to take a message on this topic."""
        log.warning(str(error))
        self._topics[topic] = (time.monotonic() + DENIAL_SECONDS, str(error))

    def note_filters(self, refused: Mapping[str, DeniedError]) -> None:
        """The broker was asked for every filter, and refused these. It is asked again over the next connection."""
        self._filters = [str(error) for error in refused.values()]
        for sentence in self._filters:
            log.warning(sentence)

    def hold(self, topic: str) -> bool:
        """Whether the topic is to be left alone."""
        if topic not in self._topics:
            return False
        until, _ = self._topics[topic]
        if until <= time.monotonic():
            del self._topics[topic]
            return False
        return True
