"""The agent's metrics, put together: what is counted as it happens, and a snapshot for each scrape."""

import asyncio
import time
from collections.abc import Mapping
from typing import NoReturn

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

import agent
from agent.bus.session import BusSession
from agent.controller import Controller
from agent.metrics.counts import Counts
from agent.metrics.disk_io import Device, DiskIo, DiskMeters
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
        self._meters = DiskMeters()
        self._reading: asyncio.Future[dict[DiskKey, DiskIo]] | None = None
        self._counts = Counts(self._registry)
        reporter.tally = self._counts
        bus.tell_lag(self._counts.bus_lag.observe)

    async def run(self) -> NoReturn:
        """Serve, and measure the event loop, for ever."""
        try:
            async with serving(self._listen, self._render):
                while True:
                    due = time.monotonic() + TICK_SECONDS
                    await asyncio.sleep(TICK_SECONDS)
                    self._counts.loop_lag.observe(max(0.0, time.monotonic() - due))
        finally:
            if self._reading is not None:
                self._reading.cancel()

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
            key: Device(one.attached.node, one.attached.diskseq)
            for key, one in disks.items()
            if one.attached and one.attached.node
        }
        return Snapshot(
            disks=disks,
            io=await self._io(devices),
            queued=self._controller.queued,
            working=self._controller.working,
            unsent=self._bus.unsent,
            dropped=self._bus.dropped_events,
            connected=self._bus.connected,
            guests=self._reporter.guests,
        )

    async def _io(self, devices: Mapping[DiskKey, Device]) -> Mapping[DiskKey, DiskIo]:
        """The disks' totals; none if that takes too long. A thread that hangs stays the only one."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(asyncio.to_thread(self._meters.read, devices))
        await asyncio.wait((self._reading,), timeout=SYSFS_SECONDS)
        return self._reading.result() if self._reading.done() else {}
