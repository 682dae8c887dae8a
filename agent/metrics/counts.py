"""What is counted while the agent works. Off the hot path where nobody listens: then nothing of this is made."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from agent.events import Cause
from agent.report import Report
from agent.status import Phase
from reconcilers.reason import Reason
from reconcilers.spec import Backend

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Buckets from a loop device's time to that of a hung step."""

LAG_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)

_DRIFT = frozenset({Cause.KERNEL, Cause.SERVER, Cause.IMAGE, Cause.TIMER})
"""Causes that no operator set off."""


class Counts:
    """Counters and histograms of one agent.

    Args:
        registry: Where they are gathered from.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reconciles = Histogram(
            "tapster_reconcile_seconds",
            "From a trigger to the disk's outcome.",
            ["cause", "phase"],
            buckets=SECONDS,
            registry=registry,
        )
        self._retries = Counter(
            "tapster_retries", "Disks that were tried again after a failure.", ["reason"], registry=registry
        )
        self._repairs = Counter(
            "tapster_drift_repairs",
            "Disks that were brought back after something took or changed them behind the agent's back.",
            ["cause"],
            registry=registry,
        )
        self._restarts = Counter(
            "tapster_tap_restarts", "Taps that were started anew because their server had died.", registry=registry
        )
        self.loop_lag = Histogram(
            "tapster_event_loop_lag_seconds",
            "How late the event loop was for an appointment; it has one a second.",
            buckets=LAG_SECONDS,
            registry=registry,
        )
        self.bus_lag = Histogram(
            "tapster_bus_lag_seconds",
            "From sending a message to the broker's acknowledgement, a sample of each batch.",
            buckets=SECONDS,
            registry=registry,
        )

    def count(self, before: Report | None, report: Report) -> None:
        """Take note of a report and of the one before it on the same disk."""
        self._reconciles.labels(report.cause, report.phase).observe(report.duration_s)
        if report.cause is Cause.RETRY:
            self._retries.labels(before.reason if before else report.reason).inc()
        if _has_new_server(before, report):
            self._restarts.inc()
        if before is None or report.phase is not Phase.UP or not report.attached:
            return
        anew = before.attached is None or before.attached.diskseq != report.attached.diskseq
        if anew and before.phase in {Phase.UP, Phase.LOST, Phase.DEGRADED} and report.cause in _DRIFT:
            self._repairs.labels(report.cause).inc()


def _has_new_server(before: Report | None, report: Report) -> bool:
    """Whether a tap serves again, by another server than the one that died.

    The outage tells it, also where nobody saw the tap lost: its next look finds it dead and starts it anew at once.
    """
    attached, outage = report.attached, report.outage
    if not (attached and attached.backend is Backend.BLKTAP and outage and outage.ended and report.outage_is_news):
        return False
    if outage.reason is Reason.SERVER_HUNG:  # it goes on by itself, or is killed
        return before is not None and _process(before) != _process(report)
    return outage.reason is Reason.SERVER_LOST


def _process(report: Report) -> int | None:
    return report.attached.tap.process_id if report.attached and report.attached.tap else None
