"""udisks, which desktops and some hosts make loop devices with, on a D-Bus of its own."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_UDISKSD = ("/usr/libexec/udisks2/udisksd", "/usr/lib/udisks2/udisksd")
_UDEVD = ("/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd")
_NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--kill-child", "--fork")

PATIENCE = 300.0


def lacking() -> str | None:
    """What this host lacks for it, and the command that brings it; None if nothing."""
    there = _first(_UDISKSD) and _first(_UDEVD) and shutil.which("udisksctl") and shutil.which("dbus-daemon")
    return None if there else "udisksctl loop-setup: there is no udisks; apt-get install udisks2 dbus udev"


def seconds_of_loop_setup(images: Sequence[Path]) -> float:
    """A shell loop of `udisksctl loop-setup` over the images, once all daemons are up."""
    script = Path(__file__).with_suffix(".sh")
    command = [*_NAMESPACES, "sh", "-e", str(script), _first(_UDISKSD), _first(_UDEVD), *map(str, images)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    if ended.returncode != 0:
        raise RuntimeError(f"udisksctl loop-setup ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")
    return int(ended.stdout) / 1e9


def _first(paths: Sequence[str]) -> str:
    return next((path for path in paths if Path(path).exists()), "")
