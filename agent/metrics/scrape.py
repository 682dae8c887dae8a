"""The agent's metrics, put together: what is counted as it happens, and a snapshot for each scrape."""

import asyncio
import time
from contextlib import suppress
from typing import NoReturn

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

import agent
from agent.bus.session import BusSession
from agent.controller import Controller
from agent.metrics.counts import Counts
from agent.metrics.disk_io import DiskIo, read_all
from agent.metrics.server import serving
from agent.metrics.snapshot import Snapshot, SnapshotCollector, build_info
from agent.reporter import Reporter
from reconcilers.spec import DiskKey

TICK_SECONDS = 1.0
"""How often the event loop's lateness is measured."""

SYSFS_SECONDS = 2.0
"""How long a scrape waits for sysfs; then it answers without the disks' totals."""


class Metrics:
    """Serves one agent's metrics. Nothing is measured before it is made."""

    def __init__(self, listen: str, *, reporter: Reporter, controller: Controller, bus: BusSession) -> None:
        """Args: where to listen, as in the settings, and whom to ask."""
        self._listen = listen
        self._reporter = reporter
        self._controller = controller
        self._bus = bus
        self._registry = CollectorRegistry()
        self._counts = Counts(self._registry)
        reporter.tally = self._counts
        bus.tell_lag(self._counts.bus_lag.observe)

    async def run(self) -> NoReturn:
        """Serve, and measure the event loop, for ever."""
        async with serving(self._listen, self._render):
            while True:
                due = time.monotonic() + TICK_SECONDS
                await asyncio.sleep(TICK_SECONDS)
                self._counts.loop_lag.observe(max(0.0, time.monotonic() - due))

    async def _render(self, accept: str) -> tuple[str, bytes]:
        moment = CollectorRegistry()
        moment.register(SnapshotCollector(await self._snapshot()))
        moment.register(build_info(agent.__version__))
        encode, kind = choose_encoder(accept)
        parts = (encode(self._registry), encode(moment))
        return kind, b"".join(part.removesuffix(b"# EOF\n") for part in parts) + (
            b"# EOF\n" if parts[0].endswith(b"# EOF\n") else b""
        )

    async def _snapshot(self) -> Snapshot:
        disks = self._reporter.reports()
        devices = {
            key: report.attached.device_path
            for key, report in disks.items()
            if report.attached and report.attached.device_path
        }
        io = dict[DiskKey, DiskIo]()
        with suppress(TimeoutError):
            async with asyncio.timeout(SYSFS_SECONDS):
                io = dict(await asyncio.to_thread(lambda: list(read_all(devices))))
        return Snapshot(
            disks=disks,
            io=io,
            queued=self._controller.queued,
            working=self._controller.working,
            unsent=self._bus.unsent,
            dropped=self._bus.dropped_events,
            connected=self._bus.connected,
            guests=self._reporter.guests,
        )
