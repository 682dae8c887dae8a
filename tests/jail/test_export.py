"""How the agent comes by what a server exports, when the server has its own ideas of what is where."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from reconcilers.blktap.tap import TapFolder
from reconcilers.errors import DiskError
from reconcilers.reason import Reason


def test_no_link_is_followed_in_a_jail(tmp_path: Path) -> None:
    """A link in a jail leads, for us, to the host's file of that name."""
    (tmp_path / "secret").write_text("another tenant's")
    tap = TapFolder(tmp_path / "tap")
    tap.path.mkdir()
    with subprocess.Popen(["sleep", "600"]) as server:
        try:
            tap.note_process(server.pid)
            tap.export.write_text("its own")
            os.close(tap.open_export(os.O_RDONLY))
            tap.export.rename(tap.path / "other")
            tap.export.symlink_to(tmp_path / "secret")
            with pytest.raises(DiskError) as refused:
                tap.open_export(os.O_RDONLY)
        finally:
            server.send_signal(signal.SIGKILL)
    assert refused.value.reason is Reason.SERVER_FAILED
