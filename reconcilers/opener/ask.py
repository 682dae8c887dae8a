"""The side of whoever wants something opened."""

import json
import os
import socket
from pathlib import Path

from reconcilers.opener.things import THINGS

VARIABLE = "DOORS"
"""Names in the environment the folder of the doors."""


def opened(thing: str, *arguments: str | float, within: float = 10.0) -> int:
    """Have one of `THINGS` opened. It blocks.

    Args:
        thing: Its name.
        arguments: As its function has them.
        within: Seconds that the answer may take.

    Returns:
        The descriptor, ours to close.

    Raises:
        OSError: Why it can't be opened, or that nobody is there to do it.
    """
    function, door = THINGS[thing]
    folder = os.environ.get(VARIABLE)
    if not folder:
        try:
            return function(*arguments)
        except ValueError as error:
            raise OSError(str(error)) from error
    unit = f"tapster-{door}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.settimeout(within)
        try:
            asking.connect(str(Path(folder, f"{door}.sock")))
            asking.send(json.dumps([thing, *arguments]).encode())
            answer, descriptors, _, _ = socket.recv_fds(asking, 4096, 1)
        except OSError as error:
            remedy = f"`systemctl start {unit}.socket`; `journalctl -u '{unit}@*'` may say more"
            raise OSError(error.errno, f"{unit}.socket: {error.strerror or error}; {remedy}") from error
    if not descriptors:
        raise OSError(answer.decode() or f"{unit}@.service opened nothing; see `journalctl -u '{unit}@*'`")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]
