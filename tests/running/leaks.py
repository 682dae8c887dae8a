"""Where a secret of a bench's agent is to be seen by others."""

from contextlib import suppress
from pathlib import Path

from tests.workbench import Bench


def leaks(host: Bench, secret: str, **told: str) -> list[str]:
    """Where a secret is to be seen by others than the agent and the broker; `told` is more text to look at, by name."""
    places = {topic: payload.decode("utf-8", "replace") for topic, payload in host.messages}
    places |= told
    places["the agent's log"] = host.log.read_text()
    files = [*host.runtime.rglob("*.log"), *(host.folder / "state").rglob("*"), *Path("/proc").glob("[0-9]*/cmdline")]
    for file in files:
        with suppress(FileNotFoundError, ProcessLookupError, IsADirectoryError):  # drafts and processes come and go
            places[str(file)] = file.read_bytes().decode("latin-1")
    return [place for place, text in places.items() if secret in text]
