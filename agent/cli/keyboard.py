"""Keys as they are pressed, from a terminal, into an event loop."""

import asyncio
import os
import re
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Z]|.", re.DOTALL)


@contextmanager
def keys(press: Callable[[str], None]) -> Iterator[None]:
    """Call with each key: a character, or an escape sequence. Where stdin is no terminal there are none."""
    if not sys.stdin.isatty():
        yield
        return
    stdin, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(stdin)

    def read() -> None:
        text = os.read(stdin, 1024).decode("utf-8", "replace")
        for key in _KEY.findall(text):
            press(key.replace("\x1bO", "\x1b["))

    tty.setcbreak(stdin)  # Ctrl-C still interrupts
    loop.add_reader(stdin, read)
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)
