"""What the broker has refused is told until it is granted, or until it may have been."""

import pytest

from agent.bus import denials
from agent.bus.connection import DeniedError
from agent.bus.denials import Denials


def test_a_filter_is_told_of_until_it_is_granted() -> None:
    known = Denials()
    for refused, told in (({"a/#": DeniedError("not yours")}, "not yours"), ({}, None)):
        known.note_filters(refused)
        assert known.sentence == told


def test_a_topic_is_told_of_for_as_long_as_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Denials()
    for seconds, told in ((60.0, "not yours"), (0.0, None)):
        monkeypatch.setattr(denials, "DENIAL_SECONDS", seconds)
        known.note("a/topic", DeniedError("not yours"))
        assert known.sentence == told
        assert known.hold("a/topic") is bool(told)
