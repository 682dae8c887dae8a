"""The kernel, its limits, the block servers and the clock."""

import ctypes
import os
import platform
import re
import resource
from collections.abc import Iterable
from pathlib import Path

from agent.doctor.finding import Finding, Findings, ok, problem, warning
from agent.host import abilities_of
from agent.settings import Settings
from reconcilers.abilities import HostAbilities
from reconcilers.blktap import aio_slots
from reconcilers.blktap.abilities import starter_for, why_no_device
from reconcilers.blktap.kinds import DeviceKind
from reconcilers.kernel_parts import ENOUGH, why_unfit
from reconcilers.loop import minors
from reconcilers.spec import Backend

MAX_LOOP_IS_NO_LIMIT = (6, 6)
"""Since then max_loop only says how many devices are made at first."""

DESCRIPTORS_WANTED = 4096
"""Open files of the agent: some per tap, so a smaller limit ends at some hundred disks."""

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES = 512  # more than a struct timex has anywhere


async def machine(settings: Settings, agent_pid: int | None) -> list[Finding]:
    """Look at the host.

    Args:
        settings: Say which servers and formats may be used.
        agent_pid: The running agent, whose limits count; None if none runs.
    """
    abilities = await abilities_of(settings, starter_for(settings.paths.runtime))
    abilities.taps.starter.close()
    return [
        *_kernel(),
        *_backends(abilities),
        *_devices(settings.blktap.devices),
        *_loop_numbers(),
        *_asynchronous_io(),
        *_open_files(agent_pid),
        *_clock(),
    ]


def _kernel() -> Findings:
    release = platform.release()
    if why := why_unfit():
        yield problem("kernel", f"Linux {release}: {why}", f"boot {ENOUGH}")
    else:
        yield ok("kernel", f"Linux {release}")


def _kernel_numbers() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", platform.release())[:2]))


def _backends(abilities: HostAbilities) -> Findings:
    for backend in (Backend.LOOP, Backend.BLKTAP):
        if why := abilities.missing.get(backend):
            command = re.search(r"`(.+?)`", why)
            yield problem(backend, why, command.group(1) if command else "see the message")
        else:
            yield ok(backend, "can be used")
    for server in abilities.taps.servers.values():
        yield ok("server", f"{server.version}; opens {', '.join(sorted(server.formats))}")


def _devices(wanted: Iterable[DeviceKind]) -> Findings:
    for kind in wanted:
        if why := why_no_device(kind):
            yield warning("device", f"no {kind}: {why}", "do what the message says, or leave it out of blktap.devices")
        else:
            yield ok("device", f"{kind} can be used")


def _loop_numbers() -> Findings:
    bound = len(minors.bound())
    setting = Path("/sys/module/loop/parameters/max_loop")
    most = int(setting.read_text()) if setting.exists() else 0
    if most and _kernel_numbers() < MAX_LOOP_IS_NO_LIMIT and bound >= most:
        message = f"{bound} loop devices are in use, and this kernel may make no more than max_loop={most}"
        mend = "drop max_loop= from the kernel's command line or /etc/modprobe.d, and restart the host"
        yield problem("max_loop", message, mend)
    else:
        yield ok("max_loop", f"{bound} loop devices are in use, and more can be made")


def _asynchronous_io() -> Findings:
    left, most = aio_slots.free()
    each = {"tapdisks": aio_slots.OF_A_TAPDISK, "servers with io='native'": aio_slots.OF_NATIVE_IO}
    worth = " or ".join(f"{max(0, left) // slots} {what}" for what, slots in each.items())
    room = f"{left} of fs.aio-max-nr={most} are free, enough for {worth}"
    if left < max(each.values()):
        yield problem("aio", room, aio_slots.RAISE)
    elif left < most // 5:
        yield warning("aio", room, aio_slots.RAISE)
    else:
        yield ok("aio", room)


def _open_files(agent_pid: int | None) -> Findings:
    # 0 is this process.
    soft, _ = resource.prlimit(agent_pid or 0, resource.RLIMIT_NOFILE)
    whose = f"the agent (process {agent_pid})" if agent_pid else "this shell, since no agent runs,"
    used = f", {len(os.listdir(f'/proc/{agent_pid}/fd'))} in use" if agent_pid else ""  # noqa: PTH208 - names only
    message = f"{whose} may have {soft} files open{used}"
    if agent_pid and soft < DESCRIPTORS_WANTED:
        yield warning("open files", message, "set LimitNOFILE=65536 in `systemctl edit tapster`, then restart it")
    else:
        yield ok("open files", message)


def _clock() -> Findings:
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state == _TIME_ERROR:
        message = (
            "the kernel says that nothing keeps the clock in time; messages are dated and certificates judged by it"
        )
        yield warning("clock", message, "apt-get install systemd-timesyncd, or mend chrony")
    else:
        yield ok("clock", "is kept in time")
