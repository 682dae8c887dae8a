"""Where a secret of a bench's agent is to be seen by others."""

from pathlib import Path

from tests.workbench import Bench


def leaks(host: Bench, secret: str, **told: str) -> list[str]:
    """Where a secret is to be seen by others than the agent and the broker; `told` is more text to look at, by name."""
    places = {topic: payload.decode("utf-8", "replace") for topic, payload in host.messages}
    places |= told
    places["the agent's log"] = host.log.read_text()
    places |= {str(file): file.read_bytes().decode("utf-8", "replace") for file in host.runtime.rglob("*.log")}
    state = host.folder / "state"
    places |= {str(file): file.read_bytes().decode("latin-1") for file in state.rglob("*") if file.is_file()}
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            places[str(words)] = words.read_text("utf-8", "replace")
        except OSError:
            continue
    return [place for place, text in places.items() if secret in text]
