"""Which formats this host's tapdisk really opens: builds differ, and a name in its table is not a driver."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import structlog

from reconcilers.actual import FileId
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.blktap.storage_daemon import StorageDaemon
from reconcilers.blktap.tap import TapFolder, TapRecord
from reconcilers.blktap.tapdisk import tap_ctl
from reconcilers.blktap.tapdisk.leftovers import orphaned
from reconcilers.blktap.tapdisk.server import KINDS, Tapdisk
from reconcilers.blktap.tapdisk.tap_ctl import TapCtlError
from reconcilers.errors import DiskError
from reconcilers.jail.launcher import Starter
from reconcilers.spec import Format
from reconcilers.tuning import UNTUNED

log: structlog.stdlib.BoundLogger = structlog.get_logger()

PATIENCE = 15.0
"""Seconds for each call; together they take a quarter of a second, where the machine has nothing else to do."""

_QEMU_NAMES = {Format.VHD: "vpc", Format.QCOW2: "qcow2"}
_SIZE = 1 << 20


async def probe_tapdisk(
    formats: frozenset[Format], relay: StorageDaemon | None, starter: Starter
) -> tuple[Tapdisk | None, str | None]:
    """The server made of this host's tapdisk, and why there is none.

    Each of the formats that may be served is tried with a small image of its own; without qemu-img only a raw one can
    be had.
    """
    if not tap_ctl.is_installed():
        return None, "tap-ctl is not installed"
    tried = [fmt for fmt in KINDS if fmt in formats]
    answers = await asyncio.gather(*(_try(fmt, starter) for fmt in tried))
    opened = frozenset(fmt for fmt, why in zip(tried, answers, strict=True) if why is None)
    if not opened:
        why = "; ".join(["tapdisk opens no image", *filter(None, answers)])
        log.warning("tapdisk is left out until the next start", why=why)
        return None, why
    await _tell_of_orphans()
    return Tapdisk(opened, relay, starter), None


async def _tell_of_orphans() -> None:
    """Minors that somebody took and never gave back; an agent that is killed in that moment leaves one too."""
    with suppress(TapCtlError):
        marker = await tap_ctl.allocate(within=PATIENCE)
        await tap_ctl.free(tap_ctl.minor_of(marker), within=PATIENCE)
        for orphan in await asyncio.to_thread(orphaned, marker.parent):
            remedy = f"tap-ctl free -m {tap_ctl.minor_of(orphan)}"
            log.warning("a minor is taken that no tapdisk serves", marker=str(orphan), remedy=remedy)


async def _try(fmt: Format, starter: Starter) -> str | None:
    """Why an image of the format can't be opened; None if it can."""
    folder = Path(tempfile.mkdtemp(prefix="tapster-probe-"))
    try:
        image = await asyncio.to_thread(_make_image, fmt, folder / "image")
        return "there is no qemu-img to make one" if image is None else await _try_image(fmt, folder, image, starter)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder)


async def _try_image(fmt: Format, folder: Path, image: Path, starter: Starter) -> str | None:
    tap, server = TapFolder(folder / f"probe-{fmt}"), Tapdisk(frozenset({fmt}), None, starter)
    await asyncio.to_thread(tap.prepare, _record(fmt, image))
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        await server.spawn(tap, [fd], within=PATIENCE)
    except DiskError as error:
        return error.message
    finally:
        os.close(fd)
    try:
        await server.stop(tap, within=PATIENCE)
    except DiskError as error:
        return error.message
    return None


def _make_image(fmt: Format, path: Path) -> Path | None:
    if fmt is Format.AIO:
        path.touch()
        os.truncate(path, _SIZE)
        return path
    command = ["qemu-img", "create", "-q", "-f", _QEMU_NAMES[fmt], str(path), str(_SIZE)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return path if done.returncode == 0 else None


def _record(fmt: Format, image: Path) -> TapRecord:
    identity = FileId.of(image.stat())
    return TapRecord(
        guest="probe",
        target=fmt,
        source=str(image),
        device=identity.device,
        inode=identity.inode,
        format=fmt,
        read_only=False,
        slice_offset=0,
        slice_size=None,
        server="tapdisk",
        server_kind=ServerKind.TAPDISK,
        device_kind=DeviceKind.NBD,
        asked=UNTUNED,
        tuning=UNTUNED,
    )
