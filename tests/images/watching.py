"""Who opens what must not be opened, whatever process and mount namespace it is in, and who calls where."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from asyncinotify import Inotify, Mask


class Watch:
    """Files and addresses that nobody may touch.

    An inotify(7) watch is on the inode, so it tells of an open through any path and in any namespace.
    """

    def __init__(self, files: list[Path], sockets: list[socket.socket]) -> None:
        self._inotify = Inotify(sync_timeout=0)
        for file in files:
            self._inotify.add_watch(file, Mask.OPEN | Mask.ACCESS)
        self._calls: list[str] = []
        self._sockets = sockets
        for each in sockets:
            threading.Thread(target=self._listen, args=(each,), daemon=True).start()

    def seen(self) -> list[str]:
        """What was opened and who called since the last question."""
        found = [f"{event.path}: {event.mask!r}" for event in self._inotify] + self._calls
        self._calls = []
        return found

    def close(self) -> None:
        """Watch no more."""
        self._inotify.close()

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._calls.append(f"a call to {listener.getsockname()}")
            connection.close()


@contextmanager
def watched(files: list[Path], unix: Path) -> Iterator[tuple[Watch, int]]:
    """Watch files, a unix socket, and a TCP port of loopback, which is returned too."""
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(unix))
        local.listen()
        watch = Watch(files, [tcp, local])
        stack.callback(watch.close)
        yield watch, tcp.getsockname()[1]
