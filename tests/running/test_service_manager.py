"""What systemd is told, heard on the socket that it would give."""

import os
import signal
import socket

import pytest

from agent.notify import Notifier
from reconcilers.loop import control
from tests.faults.harm import no_free_descriptor
from tests.workbench import PATIENCE, Bench, loop_disk


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name = f"\0tapster-test-{os.getpid()}"
    ear.bind(name)
    ear.settimeout(PATIENCE)
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name[1:]}")
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    return ear


def heard(ear: socket.socket, beginning: str) -> str:
    """The next notification that begins so."""
    while True:
        text = ear.recv(4096).decode()
        if text.startswith(beginning):
            return text


def test_without_a_free_descriptor_nothing_is_told_and_nothing_fails(manager: socket.socket) -> None:
    notifier = Notifier()
    with no_free_descriptor(os.getpid()):
        notifier.status("unheard")
    notifier.status("heard")
    assert heard(manager, "STATUS=") == "STATUS=heard"


def test_ready_comes_when_the_store_s_disks_are_up_without_a_broker(bench: Bench, manager: socket.socket) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    bench.until_guest("vm1", "Up")
    bench.stop()
    for device in bench.loops():
        bench.until(lambda device=device: control.try_detach(device))  # type: ignore[misc]
    bench.config.write_text(bench.config.read_text().replace(f"port = {bench.broker.port}", "port = 1"))
    bench.start()
    heard(manager, "READY=1")
    assert len(bench.loops()) == 1
    assert heard(manager, "STATUS=") == "STATUS=1 guests; disks: 1 Up"
    heard(manager, "WATCHDOG=1")
    bench.send(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in heard(manager, "RELOADING=1")
    heard(manager, "READY=1")
    bench.stop()
    heard(manager, "STOPPING=1")
