"""What starts the programs of taps' units where there is no systemd, or less of it."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from reconcilers.jail import warden
from reconcilers.systemd import Systemd

APART = ("unshare", "--net", "--ipc", "--uts")
"""What systemd gives a unit before its program starts."""


class SystemdsPlace(Systemd):
    """Starts a unit's program as systemd would."""

    def __init__(
        self, orders: Path, *, around: Sequence[str] = APART, surroundings: Mapping[str, str] | None = None
    ) -> None:
        """Args: where units ask for their orders; what gives them their namespaces; and more environment for them."""
        super().__init__()
        self._orders = orders
        self._around = around
        self._surroundings = {"PATH": os.environ["PATH"], **(surroundings or {})}
        self.processes: list[asyncio.subprocess.Process] = []

    async def restart(self, unit: str) -> None:
        name = unit.removeprefix("tapster-tap@").removesuffix(".service")
        program = (sys.executable, "-I", "-S", str(Path(warden.__file__).parent), "become", str(self._orders / name))
        self.processes.append(await asyncio.create_subprocess_exec(*self._around, *program, env=self._surroundings))
