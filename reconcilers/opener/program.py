"""The program of tapster-network@.service and tapster-kernel-log@.service: opens one thing for who asks, and ends."""

import json
import os
import socket

from reconcilers.opener.things import THINGS


def run() -> None:
    """Answer the one question on standard input, which is a Unix socket."""
    asked = socket.socket(fileno=0)
    try:
        thing, *arguments = json.loads(asked.recv(4096))
        function, _ = THINGS[thing]
        descriptor = function(*arguments)
    except (OSError, ValueError) as error:
        asked.send(str(error).encode())
        return
    socket.send_fds(asked, [b"opened"], [descriptor])
    os.close(descriptor)
