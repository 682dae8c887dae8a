"""qemu-storage-daemon as a tap: how it is started, asked and stopped.

The image reaches it as an inherited descriptor that already carries the image's locks, so these live exactly as long
as the server does. Every block driver is named; nothing is ever probed. See qemu-storage-daemon(1) and the QEMU QMP
reference.
"""

import asyncio
import fcntl
import json
import os
import shutil
import socket
import stat
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

from qemu.qmp import ExecuteError, QMPClient, QMPError

from reconcilers.blktap.tap import TapFolder, TapRecord
from reconcilers.errors import DiskError
from reconcilers.process import process_end
from reconcilers.reason import Reason
from reconcilers.spec import Format

PROGRAM = "qemu-storage-daemon"
_EXPORT = "disk"

_DRIVERS = {
    Format.AIO: "raw",
    Format.QCOW: "qcow",
    Format.QCOW2: "qcow2",
    Format.QED: "qed",
    Format.VDI: "vdi",
    Format.VHD: "vpc",
    Format.VHDX: "vhdx",
    Format.VMDK: "vmdk",
}
# Those that could name a backing file are told that there is none, whatever their header says.
_CAN_NAME_BACKING = {Format.QCOW, Format.QCOW2, Format.QED, Format.VMDK}


async def version() -> str | None:
    """The program's name and version as `qemu-storage-daemon 7.2.22`; None if this host lacks it."""
    if shutil.which(PROGRAM) is None:
        return None
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "--version", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    words = output.decode("utf-8", "replace").split()
    return f"{PROGRAM} {words[2]}" if len(words) > 2 else PROGRAM  # noqa: PLR2004


def formats() -> frozenset[Format]:
    """What the program opens in every build that Debian ships."""
    return frozenset(_DRIVERS)


async def spawn(tap: TapFolder, image_fd: int, *, within: float) -> int:
    """Start the server of `tap` over the locked image at `image_fd`, and wait until its export is there.

    Args:
        tap: Prepared, with its record.
        image_fd: The server inherits it; close it afterwards, so that the lock's life is the server's.
        within: Seconds until the attempt counts as failed; the server is then ended.

    Returns:
        The server's process id. It is our child: an `ExitWatch` reaps it.

    Raises:
        DiskError: ServerFailed with the server's last log lines, or TimedOut. Nothing runs then.
    """
    with ExitStack() as stack:
        # Listening before the server starts means that we can connect at once and need not wait for a file.
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tap.qmp))
        listener.listen()
        lock_fd = os.open(tap.lock, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, lock_fd)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        log = stack.enter_context(tap.log.open("ab"))
        process = await asyncio.to_thread(
            subprocess.Popen,
            _command(tap, image_fd, listener.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(image_fd, listener.fileno(), lock_fd),
            start_new_session=True,  # a signal to the agent's group is not for its taps
        )
    try:
        await ready(tap, within=within)
    except BaseException:
        process.kill()  # nothing is attached to it yet, so nothing can be lost
        await process_end(process.pid)
        raise
    return process.pid


async def ready(tap: TapFolder, *, within: float) -> None:
    """Wait until the server's export is there.

    Raises:
        DiskError: ServerFailed with the server's last log lines, or TimedOut.
    """
    try:
        async with asyncio.timeout(within):
            # The greeting comes from the monitor's own thread and proves nothing; commands are answered by the main
            # loop, which runs only after every option, the export among them, was carried out.
            exports = await _execute(tap, "query-block-exports")
    except TimeoutError as error:
        message = f"the server was not ready after {within:g} s; {tap.last_log_lines()}"
        raise DiskError(Reason.TIMED_OUT, message) from error
    except (QMPError, OSError, EOFError) as error:
        message = f"{PROGRAM} did not start: {tap.last_log_lines() or error}"
        raise DiskError(Reason.SERVER_FAILED, message) from error
    if not any(export["id"] == _EXPORT for export in exports):
        message = f"{PROGRAM} runs without its export; {tap.last_log_lines()}"
        raise DiskError(Reason.SERVER_FAILED, message)


async def stop(tap: TapFolder, *, within: float) -> None:
    """Ask the server to flush and end, and wait until it has. The device over its export is gone by now.

    Raises:
        DiskError: TimedOut if it does not end; it is not killed, since what it has not flushed would be lost.
    """
    if not tap.alive():
        return
    pid = await asyncio.to_thread(tap.process_id)
    try:
        async with asyncio.timeout(within):
            with suppress(QMPError, OSError, EOFError):
                await _execute(tap, "quit")
            await process_end(pid)
    except TimeoutError as error:
        raise DiskError(
            Reason.TIMED_OUT,
            f"the server (pid {pid}) did not end within {within:g} s; it may be stopped or its storage may hang",
        ) from error


def _command(tap: TapFolder, image_fd: int, listener_fd: int) -> list[str]:
    record = tap.record()
    if record is None:
        raise DiskError(Reason.INTERNAL_ERROR, f"the tap folder {tap.path} has no record")
    nodes = [_image_node(record, image_fd), *_slice_nodes(record), _format_node(record)]
    return [
        PROGRAM,
        *("--chardev", f"socket,id=control,fd={listener_fd},server=on,wait=off"),
        *("--monitor", "chardev=control"),
        *(word for node in nodes for word in ("--blockdev", json.dumps(node))),
        *("--export", json.dumps(_export(tap.export, writable=not record.read_only))),
        *("--pidfile", str(tap.pid_file)),
    ]


def _image_node(record: TapRecord, image_fd: int) -> dict[str, object]:
    return {
        "driver": "host_device" if stat.S_ISBLK(os.fstat(image_fd).st_mode) else "file",
        "node-name": "image",
        "filename": f"/proc/self/fd/{image_fd}",
        "locking": "off",  # the inherited descriptor has the locks, and QEMU's own would clash with them
        "read-only": record.read_only,
        "discard": "unmap",
        "cache": {"direct": record.direct_io},
    }


def _slice_nodes(record: TapRecord) -> list[dict[str, object]]:
    if not record.slice_offset and record.slice_size is None:
        return []
    size = {} if record.slice_size is None else {"size": record.slice_size}
    node = {"driver": "raw", "node-name": "slice", "file": "image", "offset": record.slice_offset}
    return [node | size | {"read-only": record.read_only, "discard": "unmap"}]


def _format_node(record: TapRecord) -> dict[str, object]:
    sliced = record.slice_offset or record.slice_size is not None
    node: dict[str, object] = {
        "driver": _DRIVERS[record.format],
        "node-name": "format",
        "file": "slice" if sliced else "image",
        "read-only": record.read_only,
        "discard": "unmap",
    }
    return node | ({"backing": None} if record.format in _CAN_NAME_BACKING else {})


def _export(mount_point: Path, *, writable: bool) -> dict[str, object]:
    return {
        "type": "fuse",
        "id": _EXPORT,
        "node-name": "format",
        "mountpoint": str(mount_point),
        "writable": writable,
    }


async def _execute(tap: TapFolder, command: str) -> list[dict[str, object]]:
    client = QMPClient(tap.path.name)
    await client.connect(str(tap.qmp))
    try:
        answer = await client.execute(command)
    except ExecuteError as error:
        raise DiskError(Reason.SERVER_FAILED, f"{PROGRAM} refused {command}: {error}") from error
    finally:
        with suppress(QMPError, OSError, EOFError):
            await client.disconnect()
    return answer if isinstance(answer, list) else []
