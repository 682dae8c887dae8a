"""Tests of the installed package on a kernel of its own, where tests/system/test_real_kernel.py has them run.

They change the host that they are on, and need a systemd that is PID 1, so they are skipped anywhere else.
"""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.workbench import domain

PATIENCE = 120.0
"""Seconds until what should come true counts as failed: an emulated processor is some twenty times slower."""

IMAGES = Path("/var/lib/tapster/images")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    away = pytest.mark.skipif(not Path("/etc/tapster-test-machine").exists(), reason="runs in a machine of its own")
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(400))
            item.add_marker(away)


def run(*words: str | Path) -> str:
    """What a program prints; it has to succeed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
    return done.stdout.strip()


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, run("journalctl", "-n", "60", "--no-pager")
        time.sleep(0.1)


def push(guest: str, *disks: str) -> dict[str, dict[str, Any]]:
    """Give the host a guest, as an operator does; returns the status of each of its disks once all are up."""
    file = Path(f"/root/{guest}.xml")
    file.write_text(domain(guest, *disks))
    run("tapster", "push", "--wait", file)
    return disks_of(guest)


def disks_of(guest: str) -> dict[str, dict[str, Any]]:
    """The status of each disk of a guest, as the bus has it."""
    # It exits with 1 while one of them is not up.
    said = subprocess.run(["tapster", "status", "--output=json", guest], capture_output=True, check=False).stdout
    return {disk["target"]: disk for shown in json.loads(said) for disk in shown["disks"]}
