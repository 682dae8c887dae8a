"""What becomes a number, and which one."""

from dataclasses import replace

from prometheus_client import CollectorRegistry

from agent.events import Cause
from agent.metrics.counts import Counts
from agent.report import Report
from agent.status import Outage, Phase, now
from reconcilers.actual import Attached, FileId, TapFacts
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.reason import Reason
from reconcilers.spec import Backend, Format
from reconcilers.tuning import UNTUNED

ATTACHED = Attached(
    backend=Backend.BLKTAP,
    format=Format.QCOW2,
    identity=FileId(1, 2),
    device_path="/dev/loop3",
    diskseq=7,
    size_bytes=1 << 20,
    logical_block_size=512,
    read_only=False,
    tuning=UNTUNED,
    asked=UNTUNED,
    slice_offset=0,
    slice_size=None,
    server="a server",
    server_alive=True,
    linked=True,
    tap=TapFacts(
        server=ServerKind.STORAGE_DAEMON,
        device=DeviceKind.FUSE_LOOP,
        export="/run/export",
        process_id=41,
        unit=None,
        flushes=True,
        takes_limits=True,
    ),
)
UP = Report(phase=Phase.UP, reason=Reason.AS_DESIRED, message="", attached=ATTACHED, cause=Cause.DOCUMENT)
ANEW = UP._replace(attached=replace(ATTACHED, diskseq=8))


def over(report: Report, reason: Reason, cause: Cause = Cause.TIMER) -> Report:
    """The report of a disk whose outage has just ended."""
    outage = Outage(began=now(), ended=now(), reason=reason, message="")
    return report._replace(cause=cause, outage=outage, outage_is_news=True)


def served_by(report: Report, process_id: int) -> Report:
    """The same with another server."""
    assert report.attached
    assert report.attached.tap
    tap = replace(report.attached.tap, process_id=process_id)
    return report._replace(attached=replace(report.attached, tap=tap))


def counted(*pairs: tuple[Report | None, Report]) -> dict[str, float]:
    registry = CollectorRegistry()
    counts = Counts(registry)
    for before, report in pairs:
        counts.count(before, report)
    samples = [sample for family in registry.collect() for sample in family.samples]
    return {
        "repairs": sum(one.value for one in samples if one.name == "tapster_drift_repairs_total"),
        "restarts": sum(one.value for one in samples if one.name == "tapster_tap_restarts_total"),
        "retries": sum(one.value for one in samples if one.name == "tapster_retries_total"),
        "looks": sum(one.value for one in samples if one.name == "tapster_reconcile_seconds_count"),
    }


def test_a_first_attach_and_a_look_that_finds_nothing_are_no_repairs() -> None:
    found = counted((None, UP), (UP, UP._replace(cause=Cause.TIMER)))
    assert found == {"repairs": 0, "restarts": 0, "retries": 0, "looks": 2}


def test_a_device_that_was_taken_away_and_came_back_is_a_repair() -> None:
    assert counted((UP, ANEW._replace(cause=Cause.KERNEL)))["repairs"] == 1


def test_a_replacement_that_an_operator_asked_for_is_none() -> None:
    assert counted((UP, ANEW))["repairs"] == 0


def restarts(before: Report | None, report: Report) -> float:
    return counted((before, report))["restarts"]


def test_a_tap_that_died_and_was_started_anew_is_both() -> None:
    lost = UP._replace(phase=Phase.LOST, reason=Reason.SERVER_LOST)
    after = over(ANEW, Reason.SERVER_LOST, cause=Cause.SERVER)
    for before in (lost, UP):  # with a holder, whose device is lost first, and without
        found = counted((before, after), (after, after._replace(outage_is_news=False)))
        assert (found["repairs"], found["restarts"]) == (1, 1)


def test_a_tap_that_died_while_no_agent_ran_or_under_a_device_that_stays_is_a_restart() -> None:
    assert restarts(None, over(ANEW, Reason.SERVER_LOST)) == 1
    assert restarts(UP, over(UP, Reason.SERVER_LOST)) == 1


def test_a_tap_that_hung_is_a_restart_if_another_server_came() -> None:
    assert restarts(UP, over(UP, Reason.SERVER_HUNG)) == 0
    assert restarts(UP, over(served_by(ANEW, 42), Reason.SERVER_HUNG)) == 1


def test_an_outage_that_lasts_and_one_of_the_storage_are_no_restarts() -> None:
    after = over(ANEW, Reason.SERVER_LOST)
    assert after.outage
    assert restarts(UP, after._replace(outage=after.outage.model_copy(update={"ended": None}))) == 0
    loop = replace(ATTACHED, backend=Backend.LOOP, tap=None)
    gone = UP._replace(phase=Phase.LOST, reason=Reason.STORAGE_LOST, attached=loop)
    assert restarts(gone, over(UP._replace(attached=replace(loop, diskseq=8)), Reason.STORAGE_LOST)) == 0


def test_retries_are_counted_by_what_they_try_to_get_over() -> None:
    failed = UP._replace(phase=Phase.FAILED, reason=Reason.NO_LOOP_DEVICE, attached=None)
    assert counted((failed, UP._replace(cause=Cause.RETRY)))["retries"] == 1
