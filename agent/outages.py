"""When a disk could not be read and written: since when, until when, and why. The last such time of each disk.

Kept in the runtime folder, so that a restart of the agent neither forgets an outage nor its beginning; a reboot
forgets both, as the disks of before are no more.
"""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from pydantic import ValidationError

from agent.report import Report
from agent.status import Outage, Phase, now
from reconcilers.actual import Actual
from reconcilers.plan import failing
from reconcilers.reason import Reason
from reconcilers.spec import DiskKey
from reconcilers.tag import disk_id

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def follow(before: Outage | None, interrupted: Reason | None, report: Report, at: datetime) -> Outage | None:
    """The last outage after a report. Pure.

    Args:
        before: The last outage until then.
        interrupted: Why the disk could not be read and written before the report's steps were taken.
        report: What came of them.
        at: The time of the report.
    """
    lasting = before if before and before.ended is None else None
    reason = failing(report.attached) if report.attached else None
    if report.phase is Phase.DOWN:
        return None
    if lasting:
        return lasting.model_copy(update={"ended": max(at, lasting.began)}) if _serves(report) else lasting
    if (cause := reason or interrupted) is None:
        return before
    return Outage(
        began=at - timedelta(seconds=report.duration_s),
        ended=at if _serves(report) else None,
        reason=cause,
        message=report.message if report.reason is cause else cause.meaning,
    )


def _serves(report: Report) -> bool:
    attached = report.attached
    return attached is not None and attached.device_path is not None and failing(attached) is None


class Outages:
    """The last outage of every disk that had one."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read until `load`."""
        self._folder = folder
        self._known: dict[str, Outage] = {}
        self._serving: set[DiskKey] = set()
        self._interrupted: dict[DiskKey, Reason] = {}

    def load(self) -> None:
        """Read what an earlier agent has noted. Blocks; to be called before anything else."""
        for path in self._folder.glob("*.json"):
            try:
                self._known[path.stem] = Outage.model_validate_json(path.read_bytes())
            except ValidationError:  # its writing was cut short
                path.unlink(missing_ok=True)

    def of(self, key: DiskKey) -> Outage | None:
        """The disk's last outage."""
        return self._known.get(disk_id(key))

    def look(self, key: DiskKey, actual: Actual, *, wanted: bool) -> None:
        """See whether the disk can be read and written, before anything is done about it."""
        attached = actual.attached
        if attached and (reason := failing(attached)):
            self._interrupted.setdefault(key, reason)
        elif wanted and not (attached and attached.device_path) and (key in self._serving or actual.stray_link):
            self._interrupted.setdefault(key, Reason.DEVICE_VANISHED)
        self._serving.discard(key)

    def told_in(self, report: Report, key: DiskKey) -> Report:
        """The report with the disk's last outage; `keep` it if it is news, once the report is out."""
        before = self.of(key)
        outage = follow(before, self._interrupted.pop(key, None), report, now())
        if _serves(report):
            self._serving.add(key)
        if outage == before:
            return report if report.outage == before else report._replace(outage=before)
        if outage:
            self._known[disk_id(key)] = outage
        else:
            del self._known[disk_id(key)]
        return report._replace(outage=outage, outage_is_news=True)

    async def keep(self, key: DiskKey) -> None:
        """Have the disk's last outage on record for the next agent."""
        try:
            await asyncio.to_thread(self._write, disk_id(key), self.of(key))
        except OSError as error:  # no room in the runtime folder
            log.warning("an outage is not on record and will be forgotten at a restart", why=str(error))

    def _write(self, disk: str, outage: Outage | None) -> None:
        path = self._folder / f"{disk}.json"
        if outage is None:
            path.unlink(missing_ok=True)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path.write_text(outage.model_dump_json(), encoding="utf-8")
