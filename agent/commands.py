"""Answers to requests on `cmd/<verb>`: `plan`, `resync` and `status`, each with one JSON object."""

import json
from collections.abc import Awaitable, Callable

from pydantic import BaseModel

from agent.bus.message import Message
from agent.bus.topics import CommandTopic, Topics
from agent.definition import DocumentRejected, Limits, parse_domain
from agent.events import Cause, FindingData
from agent.preview import GuestPlan, preview
from agent.reporter import Reporter
from reconcilers.errors import DiskError
from reconcilers.host import Host


class Commands:
    """Answers requests; nothing that is asked here changes a disk beyond what documents already want."""

    def __init__(
        self,
        *,
        topics: Topics,
        host: Host,
        reporter: Reporter,
        limits: Limits,
        resync: Callable[[Cause], Awaitable[None]],
    ) -> None:
        self._topics = topics
        self._host = host
        self._reporter = reporter
        self._limits = limits
        self._resync = resync

    async def answer(self, request: Message) -> bytes | None:
        """The reply to a request; an unknown verb gets one that says which there are."""
        topic = self._topics.parse(request.topic)
        match topic:
            case CommandTopic(_, "plan"):
                return _json(await self._plan(request))
            case CommandTopic(_, "resync"):
                try:
                    await self._resync(Cause.COMMAND)
                except (DiskError, OSError) as error:
                    return json.dumps({"error": f"the host could not be looked over: {error}"}).encode()
                return json.dumps({"host": self._topics.host, "resync": "started"}).encode()
            case CommandTopic(_, "status"):
                return self._status()
            case CommandTopic(_, verb):
                return json.dumps({"error": f"there is no {verb!r}; there are plan, resync and status"}).encode()
        return None

    def _status(self) -> bytes:
        guests = [status.model_dump(mode="json") for status in self._reporter.all_statuses()]
        host = self._reporter.host_status().model_dump(mode="json")
        return json.dumps({"host": host, "guests": guests}).encode()

    async def _plan(self, request: Message) -> GuestPlan:
        """The payload is domain XML; a user property `guest` names a guest whose XML does not."""
        name = request.properties.get("guest")
        try:
            definition = parse_domain(request.payload, name=name, limits=self._limits)
        except DocumentRejected as error:
            errors = tuple(FindingData.of(finding) for finding in error.findings)
            return GuestPlan(host=self._topics.host, guest=name, steps=(), errors=errors)
        return await preview(self._host, self._topics.host, definition, self._reporter.present(definition.name))


def _json(answer: BaseModel) -> bytes:
    return answer.model_dump_json().encode()
