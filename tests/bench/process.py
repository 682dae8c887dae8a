"""What the kernel says of a process: its memory and the CPU time that it has had (proc(5))."""

from contextlib import suppress
from pathlib import Path


def memory(pid: int) -> tuple[float, float]:
    """Resident and proportional set size in MB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    sizes = {words[0]: int(words[1]) / 1024 for words in lines}
    return sizes["Rss:"], sizes["Pss:"]


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads that live, to the nanosecond, where `stat` would count in hundredths of a second."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9
