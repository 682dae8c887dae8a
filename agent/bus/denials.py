"""What the broker has refused: it is left alone for a while, because mosquitto drops the connection besides."""

import time

import structlog

from agent.bus.connection import DeniedError

log: structlog.stdlib.BoundLogger = structlog.get_logger()

DENIAL_SECONDS = 300.0
"""For so long nothing is sent to a topic that the broker refused; then its access list may have been mended."""


class Denials:
    """The topics and filters that the broker refused lately."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, str]] = {}

    @property
    def sentence(self) -> str | None:
        """What the broker refuses, and what to do about it; None if nothing is known."""
        return next((sentence for _, sentence in self._known.values()), None)

    def note(self, name: str, error: DeniedError) -> None:
        """The broker refused this topic or filter."""
        log.warning(str(error))
        self._known[name] = (time.monotonic() + DENIAL_SECONDS, str(error))

    def hold(self, name: str) -> bool:
        """Whether the topic or filter is to be left alone."""
        if name not in self._known:
            return False
        until, _ = self._known[name]
        if until <= time.monotonic():
            del self._known[name]
            return False
        return True
