"""What is gathered when Prometheus asks: the disks as they stand, and what waits."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent.metrics.disk_io import DiskIo
from agent.report import Report
from agent.status import Phase
from reconcilers.spec import DiskKey

_LABELS = ["guest", "target", "device"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The agent at one moment.

    Attributes:
        disks: The latest report of every disk.
        io: The totals of those that have a device.
        queued: Disks that wait to be looked at.
        working: Disks that are being worked on.
        unsent: Messages that wait for the broker.
        dropped: Events that were dropped because the broker was away for too long.
        connected: Whether there is a connection to the broker.
        guests: Guests that the host knows of.
    """

    disks: Mapping[DiskKey, Report]
    io: Mapping[DiskKey, DiskIo]
    queued: int
    working: int
    unsent: int
    dropped: int
    connected: bool
    guests: int


class SnapshotCollector(Collector):
    """Turns one snapshot into metrics."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """All families."""
        one = self._snapshot
        yield _by_phase(one.disks.values())
        yield GaugeMetricFamily("tapster_guests", "Guests that the host knows of.", value=one.guests)
        yield GaugeMetricFamily("tapster_queued_disks", "Disks that wait to be looked at.", value=one.queued)
        yield GaugeMetricFamily("tapster_working_disks", "Disks that are being worked on.", value=one.working)
        yield GaugeMetricFamily("tapster_bus_connected", "1 while there is a broker.", value=one.connected)
        yield GaugeMetricFamily("tapster_bus_unsent_messages", "Messages that wait for the broker.", value=one.unsent)
        yield CounterMetricFamily(
            "tapster_events_dropped", "Events dropped because the broker was away for too long.", value=one.dropped
        )
        yield from _io(one)


class _BuildInfo(Collector):
    def __init__(self, version: str) -> None:
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """The one family."""
        family = GaugeMetricFamily("tapster_build_info", "1; the version is in the label.", labels=["version"])
        family.add_metric([self._version], 1)
        yield family


def build_info(version: str) -> Collector:
    """Which version runs."""
    return _BuildInfo(version)


def _by_phase(reports: Iterable[Report]) -> Metric:
    family = GaugeMetricFamily("tapster_disks", "Disks by phase and backend.", labels=["phase", "backend"])
    counts = Counter((one.phase, one.attached.backend.value if one.attached else "none") for one in reports)
    for phase in Phase:  # all of them, so that an alert sees a zero and not a gap
        for backend in sorted({name for _, name in counts} | {"none"}):
            family.add_metric([phase, backend], counts[phase, backend])
    return family


def _io(one: Snapshot) -> Iterator[Metric]:
    read, written = (
        CounterMetricFamily(
            f"tapster_disk_{way}_bytes", f"Bytes {way} since this agent began to count.", labels=_LABELS
        )
        for way in ("read", "written")
    )
    reads, writes = (
        CounterMetricFamily(f"tapster_disk_{way}", f"Requests completed: {way}.", labels=_LABELS)
        for way in ("reads", "writes")
    )
    busy = CounterMetricFamily("tapster_disk_busy_seconds", "Time with a request in flight.", labels=_LABELS)
    flying = GaugeMetricFamily("tapster_disk_requests_in_flight", "Requests in flight.", labels=_LABELS)
    errors = CounterMetricFamily(
        "tapster_disk_io_errors", "Failed requests, where the kernel counts them (SCSI).", labels=_LABELS
    )
    for key, io in one.io.items():
        attached = one.disks[key].attached
        labels = [key.guest, key.target, (attached.device_path if attached else None) or ""]
        for family, value in (
            (read, io.read_bytes),
            (written, io.write_bytes),
            (reads, io.read_requests),
            (writes, io.write_requests),
            (busy, io.busy_seconds),
            (flying, io.in_flight),
        ):
            family.add_metric(labels, value)
        if io.errors is not None:
            errors.add_metric(labels, io.errors)
    yield from (read, written, reads, writes, busy, flying, errors)
