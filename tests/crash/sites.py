"""The places in the code that have effects, and which of them an agent went through.

The second half of the proof that no effect goes without a crash point: a recording shows every effect that happens,
this shows every effect that could happen and did not.
"""

import ast
import atexit
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]

_EFFECT_NAMES = """
    ioctl fcntl fallocate umount2 mount
    mkdir touch write_text write_bytes rename symlink_to hardlink_to unlink rmdir rmtree chmod truncate ftruncate fsync
    fdatasync pwrite
    Popen create_subprocess_exec send_fds kill terminate pidfd_send_signal bind listen connect
    execute executemany executescript
"""
_EFFECTS = frozenset(_EFFECT_NAMES.split())

NOT_REACHED = {
    "agent/store.py: self._connection.execute(_COUNT_DOCUMENTS)": "it only reads",
    "agent/store.py: self._connection.execute('ROLLBACK')": "only after an error of the file",
    "reconcilers/blktap/storage_daemon.py: os.kill(pid, signal.SIGKILL)": "only if a server does not start",
    "reconcilers/blktap/stillness.py: os.kill(pid, signal.SIGCONT)": "only if a server does not come to a stop",
    "reconcilers/image_lock.py: fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, 0, _TO_THE_END))": "only if "
    "somebody else has the image; a lock that nobody is handed ends with its agent anyway",
    "reconcilers/jail/launcher.py: socket.send_fds(self._connected(), [packet], descriptors)": "the second of the two "
    "is there for a launcher process that was killed",
    "reconcilers/blktap/tap.py: (self.path / 'damage').write_text(words or 'the server does not say how', "
    "encoding='utf-8')": "only if a server finds its image corrupt; the next agent asks the server again",
    "reconcilers/blktap/tap.py: self.socket.parent.mkdir(mode=457, exist_ok=True)": "only where taps are sockets; the "
    "folder is for all of them",
    "reconcilers/blktap/tap.py: self._reconnecting.touch(mode=384)": "only over nbd",
    "reconcilers/blktap/tap.py: path.unlink(missing_ok=True)": "only over nbd",
    "reconcilers/blktap/tap.py: self._reconnecting.unlink(missing_ok=True)": "only over nbd",
    "reconcilers/mounts.py: _libc.umount2(os.fsencode(path), _MNT_DETACH)": "only where a server that was in no jail "
    "has left its mount; faults/test_left_behind has some",
    "reconcilers/loop/control.py: fcntl.ioctl(device_fd, _LOOP_CLR_FD)": "only if the kernel binds other than asked",
    "reconcilers/loop/minors.py: fcntl.ioctl(control_fd, _LOOP_CTL_ADD, number)": "only if no loop device is free; it "
    "makes one that is bound to nothing, which is the kernel's",
}
"""Effects that no scenario comes by for sure, and why that is right."""


IN_THE_LAUNCHER = {ROOT / "reconcilers/jail" / name for name in ("enter.py", "kernel.py", "pulse.py", "warden.py")}
"""Run by what starts servers, which is another process; what it has begun goes on or ends by itself."""

KILLED_ELSEWHERE = {
    "reconcilers/blktap/nbd": "nowhere yet: this kernel has no nbd, and it is used only where the settings ask for it",
    "reconcilers/blktap/nbd_socket": "running/test_sockets has an agent killed in the middle of taking a disk down",
    "reconcilers/opener": "nowhere: what it opens is closed with the agent, and nothing of the host has changed",
    "reconcilers/jail/units.py": "nowhere: a unit whose agent has gone ends by itself, and another start ends it first",
    "reconcilers/systemd.py": "nowhere: it leaves a connection behind, and a job, which has the end that it would have",
    "reconcilers/blktap/tapdisk": "tests/tapdisk kills the agent in front of every call of tap-ctl",
}
"""Parts that no scenario has, and where the agent is killed in them."""


def effect_sites() -> Iterator[tuple[str, str]]:
    """Calls with an effect in what works on the host and in the store, as `file:line` and the source of the call."""
    files = {*(ROOT / "reconcilers").rglob("*.py"), *(ROOT / "agent").glob("store*.py")}
    elsewhere = {file for part in KILLED_ELSEWHERE for file in (ROOT / part, *(ROOT / part).rglob("*.py"))}
    for file in sorted(files - elsewhere - IN_THE_LAUNCHER):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and _has_effect(node):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", ast.unparse(node)


def _has_effect(call: ast.Call) -> bool:
    match call.func:
        case ast.Attribute(attr="replace"):  # Path's, not that of strings (two) or dataclasses (keywords)
            return len(call.args) == 1 and not call.keywords
        case ast.Attribute(attr="open") | ast.Name(id="open"):
            words = {word for arg in call.args for word in ast.walk(arg)}
            names = {node.attr for node in words if isinstance(node, ast.Attribute)}
            modes = {str(node.value) for node in words if isinstance(node, ast.Constant)}
            return "O_CREAT" in names or bool(modes & {"w", "wb", "a", "ab", "x", "xb", "a+b", "r+b"})
        case ast.Name(id="execute"):  # a question to a server is none
            return not any(isinstance(arg, ast.Constant) and str(arg.value).startswith("query-") for arg in call.args)
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name in _EFFECTS
    return False


def note_lines(to: Path) -> None:
    """From now on, remember each line of the agent's code that is run, and add them to a file at the end."""
    seen: set[tuple[str, int]] = set()

    def at_call(frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        return at_line if "/reconcilers/" in name or "/agent/store" in name else None

    def at_line(frame: FrameType, event: str, arg: Any) -> Any:
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return at_line

    def save() -> None:
        with to.open("a") as file:
            file.writelines(f"{Path(name).relative_to(ROOT)}:{line}\n" for name, line in seen)

    threading.settrace(at_call)
    sys.settrace(at_call)
    atexit.register(save)
