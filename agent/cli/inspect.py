"""`tapster inspect`: what definitions mean, told from their text alone; no host is touched."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent.definition import DiskDefinition, DocumentRejected, Finding, GuestDefinition, Limits, parse_each
from reconcilers.reason import Reason

STDIN = Path("-")


@dataclass(frozen=True, slots=True)
class _Inspected:
    """One definition of one file: its guest, or why there is none."""

    file: Path
    outcome: GuestDefinition | DocumentRejected

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Everything that is wrong, the document's faults or those of all its disks, with their lines."""
        if isinstance(self.outcome, DocumentRejected):
            return self.outcome.findings
        return tuple(finding for disk in self.outcome.disks for finding in disk.refused)


def run(files: list[Path], output: Literal["table", "json"]) -> int:
    """Print what the definitions in the files mean.

    Args:
        files: libvirt XML or xm/xl guest configuration files; `-` is standard input.
        output: JSON goes to standard output alone; with a table, the errors go to standard error.

    Returns:
        0, or 1 when a file, a definition or a disk was refused.
    """
    inspected = [found for file in files for found in _inspect(file)]
    if output == "json":
        sys.stdout.write(json.dumps([_as_json(found) for found in inspected], indent=2) + "\n")
    else:
        _print_tables(inspected)
    return 1 if any(found.errors for found in inspected) else 0


def _inspect(file: Path) -> Iterator[_Inspected]:
    limits = Limits()
    try:
        document = read(file, limits.max_bytes + 1)
    except OSError as error:
        message = f"the file can't be read: {error.strerror}; check its name and permissions"
        yield _Inspected(file, DocumentRejected(Finding(Reason.UNREADABLE, message, "/", None)))
        return
    for outcome in parse_each(document, limits=limits):
        yield _Inspected(file, outcome)


def read(file: Path, most: int) -> bytes:
    """At most so many bytes of a file, of standard input if it is `-`; OSError where that fails."""
    if file == STDIN:
        return sys.stdin.buffer.read(most)
    with file.open("rb") as stream:
        return stream.read(most)


def _as_json(found: _Inspected) -> dict[str, Any]:
    """The contract of design §4. A disk's refusals stand with the disk, and once more in `errors` with lines."""
    rejected = isinstance(found.outcome, DocumentRejected)
    return {
        "file": str(found.file),
        "guest": found.outcome.guest if isinstance(found.outcome, DocumentRejected) else found.outcome.name,
        "disks": [] if rejected else [_disk_as_json(disk) for disk in _disks(found)],
        "errors": [{"line": finding.line, **_finding_as_json(finding)} for finding in found.errors],
    }


def _disks(found: _Inspected) -> tuple[DiskDefinition, ...]:
    return () if isinstance(found.outcome, DocumentRejected) else found.outcome.disks


def _disk_as_json(disk: DiskDefinition) -> dict[str, Any]:
    return {
        "target": disk.target,
        "device": disk.device,
        "type": disk.type,
        "source": disk.source,
        "backend": disk.backend,
        "format": disk.format,
        "read_only": disk.read_only,
        "shareable": disk.shareable,
        "honoured": disk.honoured,
        "passed": disk.passed,
        "unhonoured": disk.unhonoured,
        "unknown": disk.unknown,
        "refused": [_finding_as_json(finding) for finding in disk.refused],
    }


def _finding_as_json(finding: Finding) -> dict[str, str]:
    return {"path": finding.path, "reason": finding.reason, "message": finding.message}


def _print_tables(inspected: list[_Inspected]) -> None:
    # rich takes longer to import than a definition to parse, and only this output needs it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from agent.cli.tables import console  # noqa: PLC0415
    from agent.fleet.words import printable  # noqa: PLC0415

    out, err = console(), console(stderr=True)
    for found in inspected:
        if isinstance(found.outcome, GuestDefinition):
            out.print(Text(printable(f"{found.outcome.name} ({found.file})"), style="bold"))
            table = Table(
                "TARGET", "DEVICE", "BACKEND", "FORMAT", "MODE", "SOURCE", "REMARKS", box=None, pad_edge=False
            )
            for disk in found.outcome.disks:
                cells = [*map(printable, _cells(disk)), "\n".join(map(printable, _remarks(disk)))]
                table.add_row(*(Text(cell, overflow="fold") for cell in cells))
            out.print(table)
        for finding in found.errors:
            line = f":{finding.line}" if finding.line else ""
            message = f"{found.file}{line}: {finding.reason}: {finding.message} [{finding.path}]"
            err.print(Text(printable(message)), soft_wrap=True)


def _cells(disk: DiskDefinition) -> tuple[str, ...]:
    mode = "ro" if disk.read_only else "rw"
    return (
        disk.target or "-",
        disk.device,
        disk.backend or "-",
        disk.format or "-",
        f"{mode}, shared" if disk.shareable else mode,
        disk.source or "-",
    )


def _remarks(disk: DiskDefinition) -> Iterator[str]:
    yield from dict.fromkeys(f"refused: {finding.reason}" for finding in disk.refused)
    yield from (f"not honoured: {name}" for name in disk.unhonoured)
    yield from (f"unknown: {name}" for name in disk.unknown)
