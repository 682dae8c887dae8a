"""`tapster broker --dev`: a private mosquitto on loopback, for trying things out and for tests."""

import os
import shutil
import socket
import sys
from pathlib import Path
from typing import NoReturn

ADDRESS = "127.0.0.1"

CONFIGURATION = """\
# Made by `tapster broker --dev`, and made anew each time it starts.
listener {port} {address}
allow_anonymous true
{user}
# The defaults cut a fleet's view off after 1000 messages; 0 is no limit.
max_queued_messages 0
max_inflight_messages 0
# By default a short message may wait 40 ms until the client has acknowledged the one before.
set_tcp_nodelay true
# The default saves every 30 minutes, and a killed broker would come back with what was pushed before that.
# Saving on each change instead writes all of it each time: 40 times slower with 2000 documents.
persistence true
persistence_location {folder}/
autosave_interval 1
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages false
"""


def run(dev: bool, port: int, folder: Path) -> int:
    """Become a mosquitto in the foreground; returns, with the exit code, only if that is not possible.

    Args:
        dev: Must be true: a broker without access control is for trying things out.
        port: TCP port on 127.0.0.1.
        folder: Where it keeps its configuration and what is retained; made if missing.
    """
    program = mosquitto()
    if not dev:
        return _refuse("only a broker for trying things out can be started here: say `tapster broker --dev`", 2)
    if program is None:
        return _refuse("mosquitto is not installed; install it with `apt-get install mosquitto`")
    try:
        _check_free(port)
        file = _write_configuration(port, folder)
    except OSError as error:
        return _refuse(str(error))
    sys.stderr.write(
        f"broker on {ADDRESS}:{port}, for every user of this machine; it keeps its data in {folder}\n"
        "stop it with Ctrl-C or SIGTERM\n"
    )
    sys.stderr.flush()
    return _become([program, "-c", str(file)])


def mosquitto() -> str | None:
    """Path of the program, which Debian keeps where only root's PATH looks."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def configuration(port: int, folder: Path) -> str:
    """The mosquitto.conf of the private broker.

    Started by root, mosquitto would become the user `mosquitto`, who can't use a folder of root's.
    """
    user = "user root" if os.geteuid() == 0 else ""
    return CONFIGURATION.format(address=ADDRESS, port=port, folder=folder.resolve(), user=user)


def _become(command: list[str]) -> NoReturn:
    os.execv(command[0], command)  # noqa: S606  # nosec B606


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise OSError(
                f"cannot listen on {ADDRESS}:{port}: {error.strerror}; stop what does "
                f"(`ss -ltnp sport = :{port}` shows it) or choose another --port"
            ) from error


def _write_configuration(port: int, folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / "mosquitto.conf"
        file.write_text(configuration(port, folder), encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror}; choose another --folder") from error
    return file


def _refuse(sentence: str, status: int = 1) -> int:
    sys.stderr.write(f"tapster broker: {sentence}\n")
    return status
