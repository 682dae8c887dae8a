"""How a command ends that goes on until somebody has seen enough."""

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any

from agent.bus.operator import BusError
from agent.bus.topics import TopicError

INTERRUPTED = 130
"""The exit code of what Ctrl-C ends before it is done, as shells have it."""


def until_enough(command: str, following: Coroutine[Any, Any, int | None], *, ends: bool = False) -> int:
    """Follow something on the bus until it ends, Ctrl-C, or the end of whoever reads: `head`, for example.

    Args:
        command: Its name, for the message that the bus can't be used.
        following: Prints; what it returns is the exit code, None is 0.
        ends: It would end by itself, so Ctrl-C means that it has not shown all.

    Returns:
        That, 0 without a reader, 0 or 130 after Ctrl-C, or 1 if the bus can't be used.
    """
    try:
        return asyncio.run(following) or 0
    except (BusError, TopicError) as error:
        sys.stderr.write(f"tapster {command}: {error}\n")
        return 1
    except BrokenPipeError:
        write_no_more()
    except KeyboardInterrupt:
        return INTERRUPTED if ends else 0
    return 0


def write_no_more() -> None:
    """Nothing more can be written to standard output, and Python would complain once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
