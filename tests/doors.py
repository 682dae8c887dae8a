"""A folder of doors as the units' sockets make it, with a process of its own for each who asks (systemd.socket(5))."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "from reconcilers.opener.program import run; run()"


@contextmanager
def doors(folder: Path, *names: str, program: str = PROGRAM) -> Iterator[Path]:
    """Open them for the length of the block."""
    sockets = []
    for name in names:
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        door.bind(str(folder / f"{name}.sock"))
        door.listen()
        threading.Thread(target=_answer, args=(door, program), daemon=True).start()
        sockets.append(door)
    try:
        yield folder
    finally:
        for door in sockets:
            door.shutdown(socket.SHUT_RDWR)
            door.close()


def _answer(door: socket.socket, program: str) -> None:
    while True:
        try:
            asked, _ = door.accept()
        except OSError:  # it was closed
            return
        with asked:
            subprocess.run([sys.executable, "-c", program], stdin=asked.fileno(), check=False, timeout=60)
