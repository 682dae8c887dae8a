"""What the tests of tapdisk look at."""

from dataclasses import dataclass
from pathlib import Path

from reconcilers.holders import holders_of_path
from reconcilers.spec import DiskKey
from reconcilers.tag import disk_id
from tests.workbench import Bench

DOUBLE = Path(__file__).parent / "double" / "tap-ctl"

_PROGRAM = """\
#!/bin/sh
export TAPDISK_DOUBLE={folder}
exec {double} "$@"
"""


def install_double(program: Path, folder: Path, double: Path = DOUBLE) -> None:
    """Make the program tap-ctl of the double, whose tapdisks have their sockets in a folder that it makes."""
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(_PROGRAM.format(folder=folder, double=double))
    program.chmod(0o755)


@dataclass(frozen=True)
class TapdiskHost:
    """A bench, and the control folder of its tapdisks."""

    bench: Bench
    folder: Path
    is_double: bool

    def misbehave(self, *lines: str) -> None:
        """From now on; see the double."""
        (self.folder / "misbehave").write_text("\n".join(lines))

    def behave(self) -> None:
        """No more."""
        if self.is_double:
            (self.folder / "misbehave").unlink(missing_ok=True)

    def under_way(self, subcommand: str) -> bool:
        """Whether somebody waits for the double."""
        commands = (entry / "cmdline" for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return any(f"{DOUBLE}\0{subcommand}\0" in _text(path) for path in commands)

    def tapdisks(self) -> list[int]:
        """Those of this bench, known by the lock that they inherited."""
        locks = self.bench.runtime.glob("taps/*/lock")
        return [holder.pid for lock in locks for holder in holders_of_path(str(lock))]

    def tap(self, target: str) -> Path:
        """The tap's folder of vm1's disk."""
        return self.bench.runtime / "taps" / disk_id(DiskKey("vm1", target))

    def minors(self) -> set[str]:
        """Markers that are taken."""
        return {path.name for path in (self.folder / "tapdisk").glob("tapdisk-*")}

    def sockets_of(self, pid: int) -> list[Path]:
        """What a tapdisk has in the control folder."""
        return [path for path in self.folder.iterdir() if path.name.startswith((f"ctl{pid}", f"nbd{pid}."))]

    def assert_clean(self) -> None:
        """Neither the bench nor its tapdisks have left anything."""
        self.bench.assert_clean()
        assert self.tapdisks() == []
        if self.is_double:
            assert self.minors() == set()
            assert [path for path in self.folder.iterdir() if path.is_socket()] == []


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""
