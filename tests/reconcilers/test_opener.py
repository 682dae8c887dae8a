"""What a service without a network has opened next door: the same sockets, and the same words where there is none."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconcilers.opener.ask import VARIABLE, opened
from tests.broker import free_port
from tests.doors import doors


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with doors(tmp_path, "network", "kernel-log") as folder:
        monkeypatch.setenv(VARIABLE, str(folder))
        yield folder


def failure(thing: str, *arguments: str | float) -> str:
    with pytest.raises(OSError, match=r".") as failed:
        os.close(opened(thing, *arguments))
    return str(failed.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_ends_of_a_connection(door: Path, host: str) -> None:
    port = free_port()
    with socket.socket(fileno=opened("listener", host, port)) as listener:
        listener.setblocking(True)
        with socket.socket(fileno=opened("connection", host, port, 10.0)) as connection:
            accepted, _ = listener.accept()
            with accepted:
                connection.sendall(b"through")
                assert accepted.recv(16) == b"through"
        assert not os.get_inheritable(listener.fileno())


@pytest.mark.parametrize(
    "asked",
    [
        ("connection", "127.0.0.1", 1, 10.0),
        ("connection", "no-such-host.invalid", 1, 10.0),
        ("listener", "192.0.2.1", 9477),
        ("listener", "0.0.0.0", 9477),
    ],
)
def test_failures_read_as_they_do_without_a_door(
    door: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...]
) -> None:
    said = failure(*asked)
    monkeypatch.delenv(VARIABLE)
    assert said == failure(*asked)
    assert said


def test_a_port_that_is_taken_is_told(door: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Address already in use" in failure("listener", "127.0.0.1", taken.getsockname()[1])


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="the kernel's log can't be read here")
def test_the_kernels_log_is_read_and_not_written(door: Path) -> None:
    log = opened("kernel_log")
    try:
        assert os.read(log, 8192)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(log, b"no")
    finally:
        os.close(log)


def test_nobody_behind_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert "systemctl start tapster-network.socket" in failure("connection", "127.0.0.1", 1, 1.0)
    with doors(tmp_path, "network", program="raise SystemExit(1)"):
        assert "journalctl -u 'tapster-network@*'" in failure("connection", "127.0.0.1", 1, 1.0)
