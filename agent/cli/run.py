"""`tapster run`: the agent in the foreground, with the signals that systemd and people send it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import structlog

from agent import garbage
from agent import log as logging_setup
from agent.daemon import run as run_agent
from agent.host_threads import HostThreads
from agent.notify import Notifier
from agent.settings import Settings, SettingsError, load
from agent.store_file import StoreError
from reconcilers.errors import DiskError

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def run(config: Path | None) -> int:
    """Run until SIGTERM or SIGINT. SIGHUP reads the settings again and begins anew with them; no disk is touched.

    Returns:
        0 after a clean stop, 1 if the agent can't run, 2 if the settings are wrong.
    """
    try:
        settings = load(config)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    logging_setup.configure(settings.log.level, settings.log.format)
    garbage.look_seldom()
    try:
        asyncio.run(_Service(config).run(settings))
    except (StoreError, DiskError) as error:
        log.error("the agent can't run", why=str(error))
        return 1
    return 0


class _Service:
    """Runs the agent, again with new settings after each SIGHUP."""

    def __init__(self, config: Path | None) -> None:
        self._config = config
        self._stop = asyncio.Event()
        self._stopping = False
        self._next: Settings | None = None

    async def run(self, settings: Settings) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.set_default_executor(HostThreads(loop))
        while not self._stopping:
            self._stop.clear()
            if not await run_agent(settings, self._stop):
                log.warning("left with a step that hangs; the next start finds out what became of it")
                sys.stderr.flush()
                os._exit(0)  # Python would wait for ever for a thread that hangs in a kernel call (NFS gone)
            settings = self._next or settings

    def _end(self, number: signal.Signals) -> None:
        log.info("stopping", signal=number.name)
        Notifier().stopping()
        self._stopping = True
        self._stop.set()

    def _reload(self) -> None:
        try:
            self._next = load(self._config)
        except SettingsError as error:
            log.error("the new settings are wrong, so the old ones stay in force", why=str(error))
            return
        log.info("reloading")
        Notifier().reloading()
        logging_setup.configure(self._next.log.level, self._next.log.format)
        self._stop.set()
