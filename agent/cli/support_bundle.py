"""`tapster support-bundle`: what somebody far away needs to understand this host, in one file, without its secrets."""

import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import agent
from agent.cli.doctor import examine
from agent.redaction import Redaction
from agent.settings import Settings

PATIENCE_SECONDS = 20
"""How long each command may take: what is looked at may be what hangs."""

COMMANDS = {
    "journal.txt": "journalctl --unit=tapster --unit=tapster-*@* --lines=5000 --output=short-iso-precise --no-pager",
    "service.txt": "systemctl status tapster* --all --lines=0 --no-pager",
    "kernel-log.txt": "dmesg --ctime",
    "modules.txt": "lsmod",
    "loop-devices.txt": "losetup --list --output NAME,BACK-INO,RO,DIO,SIZELIMIT,OFFSET,LOG-SEC,BACK-FILE",
    "block-devices.txt": "lsblk --output NAME,MAJ:MIN,SIZE,RO,TYPE,MOUNTPOINTS",
    "storage-daemon.txt": "qemu-storage-daemon --version",
    "room.txt": "df --human-readable",
    "stable-paths.txt": "ls -lR {runtime}/disks",
}
FILES = {
    "kernel.txt": ("/proc/version", "/proc/cmdline"),
    "mounts.txt": ("/proc/self/mountinfo",),
    "limits.txt": ("/proc/sys/fs/aio-max-nr", "/proc/sys/fs/aio-nr", "/proc/sys/fs/file-nr", "/proc/meminfo"),
    "pressure.txt": ("/proc/loadavg", "/proc/pressure/io", "/proc/pressure/memory"),
}


def run(*, config: Path, target: Path, settings: Settings) -> int:
    """Collect into a tar file that only its owner can read.

    Args:
        config: The settings' file.
        target: The file to make; it must not exist.
        settings: The agent's.

    Returns:
        0 if it was made, 1 if it could not be.
    """
    root = target.name.partition(".tar")[0]
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        sys.stderr.write(f"tapster support-bundle: {target}: {error.strerror}; name another file with --file\n")
        return 1
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as bundle:
            _collect(bundle, root, _parts(config, settings), Redaction.of(settings))
    except BaseException as error:  # Ctrl-C, too: a part of a bundle would pass for one
        target.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        why = f"{target}: can't be written: {error.strerror or error}; name a file where there is room with --file"
        sys.stderr.write(f"\ntapster support-bundle: {why}\n")
        return 1
    sys.stdout.write(f"{target}\n")
    sys.stderr.write(
        "Passwords and keys were taken out. It names this host, its guests and their images; look it over.\n"
    )
    return 0


def _collect(bundle: tarfile.TarFile, root: str, parts: Mapping[str, Callable[[], str]], redacted: Redaction) -> None:
    for name, collect in parts.items():
        sys.stderr.write(f"{name} … ")
        sys.stderr.flush()
        _add(bundle, f"{root}/{name}", redacted(collect()))
    sys.stderr.write("done\n")


def _parts(config: Path, settings: Settings) -> dict[str, Callable[[], str]]:
    parts: dict[str, Callable[[], str]] = {
        "version.txt": lambda: f"tapster {agent.__version__}\nPython {sys.version}\n",
        "tapster.toml": lambda: _read(str(config)),
        "environment.txt": lambda: "".join(
            f"{name}={value}\n" for name, value in sorted(os.environ.items()) if name.startswith("TAPSTER_")
        ),
        "doctor.json": lambda: json.dumps([asdict(one) for one in asyncio.run(examine(settings))], indent=2),
        "status.json": lambda: _said_by_itself("status", "--host", settings.host, "--output", "json", config=config),
    }
    for name, files in FILES.items():
        parts[name] = lambda files=files: "".join(f"== {file}\n{_read(file)}\n" for file in files)  # type: ignore[misc]
    for name, command in COMMANDS.items():
        words = command.format(runtime=settings.paths.runtime).split()
        parts[name] = lambda words=words: _said(*words)  # type: ignore[misc]
    return parts


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"({error})\n"


def _said(*words: str) -> str:
    """What a command prints, both to standard output and error."""
    try:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"({error})\n"
    return done.stdout.decode("utf-8", "replace")


def _said_by_itself(*words: str, config: Path) -> str:
    program = "from agent.cli.app import main; main()"
    return _said(sys.executable, "-c", program, *words, *(("--config", str(config)) if config.exists() else ()))


def _add(bundle: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    bundle.addfile(entry, io.BytesIO(data))
