"""The agent's own files, the image pools, and what earlier agents may have left on the host."""

import os
import shutil
import sqlite3
import stat
import textwrap
from contextlib import closing
from pathlib import Path

from agent.doctor.finding import GUIDES, Finding, Findings, ok, problem, warning
from agent.settings import Settings
from agent.store_file import quick_check
from reconcilers.errors import DiskError
from reconcilers.loop.scan import bound_devices
from reconcilers.tag import instance_id

ROOM_BYTES = 64 << 20
"""Free space below which the store's folder is told of."""


WORDS_LENGTH = 100
"""How much of what SQLite says is told."""

NAMES_LENGTH = 200
"""How many names of devices are told, in letters."""


def storage(settings: Settings, agent_pid: int | None) -> list[Finding]:
    """Look at the store, the folders and the devices."""
    return [
        *_store(settings.paths.state / "store.sqlite", agent_pid),
        *_room(settings.paths.state),
        *_pools(settings),
        *_devices(settings),
    ]


def agent_process(settings: Settings) -> int | None:
    """The process that holds the runtime folder's lock, as the kernel tells; None if no agent runs."""
    try:
        inode = (settings.paths.runtime / "agent.lock").stat().st_ino
    except OSError:
        return None
    locks = (line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines())
    return next((int(lock[4]) for lock in locks if lock[1] == "FLOCK" and lock[5].endswith(f":{inode}")), None)


def _store(path: Path, agent_pid: int | None) -> Findings:
    if not path.exists():
        yield ok("store", f"{path} does not exist yet; the agent's first start makes it")
        return
    if agent_pid:
        yield ok("store", f"{path} is open in the agent (process {agent_pid}), which checked it at its start")
        return
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
            problems = quick_check(connection)
    except sqlite3.DatabaseError as error:
        problems = (str(error),)
    if problems:
        mend = f"restore it from a backup, or move it away and push every definition again (OPERATING.md, {GUIDES})"
        yield problem("store", f"{path} is damaged: {textwrap.shorten(problems[0], WORDS_LENGTH)}", mend)
    else:
        yield ok("store", f"{path} is sound")


def _room(folder: Path) -> Findings:
    if not folder.is_dir():
        yield ok("room", f"{folder} does not exist yet")
        return
    free = shutil.disk_usage(folder).free
    message = f"{free >> 20} MiB are free on the file system of {folder}"
    if free < ROOM_BYTES:
        yield problem("room", f"{message}; without room no document can be stored", f"du -xsh {folder}/* | sort -h")
    else:
        yield ok("room", message)


def _pools(settings: Settings) -> Findings:
    found = 0
    for pool in settings.images.pools:
        try:
            status = pool.stat()
        except FileNotFoundError:
            continue  # the defaults name one of libvirt's, which few hosts have
        except OSError as error:
            yield problem("pool", f"{pool}: {error.strerror}", f"ls -ld {pool}")
            continue
        found += 1
        if not stat.S_ISDIR(status.st_mode):
            yield problem("pool", f"{pool} is no folder", "mend images.pools in the settings")
        elif status.st_mode & stat.S_IWOTH:
            yield problem("pool", f"{pool} can be written by everybody on this host", f"chmod o-w {pool}")
        else:
            yield ok("pool", f"{pool}, mode {stat.S_IMODE(status.st_mode):o}")
    if not found:
        pools = ", ".join(map(str, settings.images.pools)) or "none"
        yield problem("pool", f"none of the image pools exists (images.pools: {pools})", "mkdir -p one of them")


def _devices(settings: Settings) -> Findings:
    ours = instance_id(settings.fleet, settings.host, str(settings.paths.runtime))
    try:
        devices = bound_devices()
    except DiskError as error:
        yield problem("devices", str(error), "dmesg | tail")
        return
    mine = [device for device in devices if device.tag and device.tag.instance == ours]
    others = [device for device in devices if device.tag and device.tag.instance != ours]
    if others:
        names = textwrap.shorten(", ".join(f"{one.path} ({one.tag.label})" for one in others if one.tag), NAMES_LENGTH)
        message = f"loop devices of a tapster of another name, fleet or folder: {names}"
        yield warning(
            "devices", message, "take them down by that agent, or give this one its host, fleet and paths.runtime"
        )
    taps = str(settings.paths.runtime / "taps")
    for device in devices:
        if device.error and (device.backing_path or "").startswith(taps):
            message = f"{device.path} gives nothing but errors ({os.strerror(device.error)}): its server is dead"
            yield problem("devices", message, "systemctl restart tapster, which rebuilds it once nobody has it open")
    linked = {link.resolve() for link in settings.paths.runtime.glob("disks/*/*")}
    for device in mine:
        if Path(device.path) not in linked and device.tag:
            message = f"{device.path} ({device.tag.label}) has no stable path: no document asks for it"
            yield warning("devices", message, "tapster gc")
    yield ok("devices", f"{len(mine)} loop devices are this agent's")
