"""The NBD handshake with a real server, and with those that answer nonsense."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconcilers.blktap.nbd.handshake import connect
from reconcilers.errors import DiskError
from reconcilers.reason import Reason

SIZE = 3 << 40


@pytest.fixture
def server(host_parts: None, tmp_path: Path) -> Iterator[Path]:
    """A storage daemon with an export called disk."""
    image, path = tmp_path / "image", tmp_path / "nbd.sock"
    with image.open("wb") as file:
        file.truncate(SIZE)
    words = ["qemu-storage-daemon", "--nbd-server", f"addr.type=unix,addr.path={path}"]
    words += ["--blockdev", json.dumps({"driver": "file", "node-name": "image", "filename": str(image)})]
    words += ["--export", json.dumps({"type": "nbd", "id": "e", "node-name": "image", "name": "disk"})]
    process_id = tmp_path / "pid"
    # It lets go of the terminal once the export is there; its socket is there before that.
    subprocess.run([*words, "--daemonize", "--pidfile", process_id], check=True)
    yield path
    os.kill(int(process_id.read_text()), signal.SIGTERM)


def test_size_and_abilities_of_a_real_export(server: Path) -> None:
    client, export = connect(server, "disk", within=10)
    client.close()
    assert (export.size_bytes, export.read_only, export.flushes) == (SIZE, True, True)


def test_an_export_that_is_not_there_is_named(server: Path) -> None:
    with pytest.raises(DiskError, match="'other'") as refused:
        connect(server, "other", within=10)
    assert refused.value.reason is Reason.SERVER_FAILED


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DiskError) as refused:
        connect(tmp_path / "nothing", "disk", within=10)
    assert refused.value.reason is Reason.SERVER_FAILED


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", Reason.SERVER_FAILED),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", Reason.SERVER_FAILED),
        (b"NBDMAGICIHAVEOPT\0\3" + b"x" * 4096, Reason.SERVER_FAILED),
        (b"NBDMAGICIHAVEOPT\0\3\0\3\xe8\x89\4\x56\x55\xa9\0\0\0\7\0\0\0\1\0\0\0\0", Reason.SERVER_FAILED),
        (None, Reason.TIMED_OUT),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, said: bytes | None, reason: Reason) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                if said is None:
                    time.sleep(1)
                else:
                    client.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DiskError) as refused:
            connect(path, "disk", within=10 if said is not None else 0.2)
        thread.join()
    assert refused.value.reason is reason
