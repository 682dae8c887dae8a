"""Following what hosts say until every document has its outcome, however many there are."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable

from agent.bus.message import Message
from agent.bus.operator import Operator
from agent.fleet.delivery import Delivery, standing, verdict
from agent.fleet.view import Fleet

VERDICT_SECONDS = 1.0
"""A rejection that stands in the status may be an older one; after this long without a better word it is ours."""

TICK_SECONDS = VERDICT_SECONDS / 4
"""How often what nobody spoke about is looked at."""


class Follower:
    """Finds outcomes in messages, looking only at what a message is about.

    Attributes:
        open: Deliveries without an outcome yet, by host and guest.
    """

    def __init__(self, fleet: Fleet, deliveries: Iterable[Delivery], at: float) -> None:
        self._fleet = fleet
        self._heard: dict[tuple[str, str], float] = {}
        self._topics: dict[str, tuple[str, str]] = {}
        self.open: dict[tuple[str, str], Delivery] = {}
        for delivery in deliveries:
            if delivery.host is not None and not delivery.over:
                key = (delivery.host, delivery.guest)
                self.open[key] = delivery
                self._topics[fleet.topics.of(delivery.host).status(delivery.guest)] = key
        for key in list(self.open):
            self._look(key, at)

    def take(self, message: Message, at: float) -> None:
        """Take in what a host says."""
        self._fleet.take(message)
        key = self._topics.get(message.topic)
        if key is not None and key in self.open:
            self._heard.setdefault(key, at)
            self._look(key, at)

    def tick(self, at: float) -> None:
        """Look at those that spoke a while ago and have said nothing conclusive."""
        for key in [key for key in self.open if key in self._heard]:
            self._look(key, at)

    def _look(self, key: tuple[str, str], at: float) -> None:
        heard = self._heard.get(key)
        settled = heard is not None and at - heard > VERDICT_SECONDS
        verdict(self.open[key], self._fleet.guests.get(key), heard=heard is not None, settled=settled)
        if self.open[key].over:
            del self.open[key]


async def follow(
    op: Operator, fleet: Fleet, deliveries: Iterable[Delivery], *, seconds: float, progress: Callable[[], None]
) -> None:
    """Follow the status until every document has its outcome, or time is up.

    Args:
        op: Where the statuses of all deliveries are subscribed to.
        fleet: What is known of them; kept up to date.
        deliveries: The documents, which have been published; each gets its outcome.
        seconds: How long to wait at most.
        progress: Called a few times a second.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    follower, ticked = Follower(fleet, deliveries, loop.time()), loop.time()
    while follower.open and (left := deadline - loop.time()) > 0:
        message = await op.message(min(left, TICK_SECONDS))
        if message is not None:
            follower.take(message, loop.time())
        if loop.time() - ticked >= TICK_SECONDS:  # a busy fleet leaves no pause between messages
            ticked = loop.time()
            follower.tick(ticked)
            progress()
    for delivery in follower.open.values():
        delivery.settle("timeout", standing(delivery, fleet))


def by_outcome(deliveries: Iterable[Delivery]) -> dict[str, list[Delivery]]:
    """Deliveries by what became of them."""
    found: defaultdict[str, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        found[delivery.outcome].append(delivery)
    return dict(found)
