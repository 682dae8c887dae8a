"""What tests have made on this host, as the kernel and /proc tell it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from reconcilers.loop import minors

FOLDER_PREFIX = f"tapster-{os.getpid()}-"
"""All that this run of tests makes on the host names such a folder, and that is how it is found."""


def belongings() -> set[str]:
    """Loop devices, FUSE mounts and storage daemons on this host that any bench of this run has made."""
    mark = f"{tempfile.gettempdir()}/{FOLDER_PREFIX}"
    files = {minor: Path(f"/sys/block/loop{minor}/loop/backing_file") for minor in minors.bound()}
    loops = {f"/dev/loop{minor}" for minor, file in files.items() if mark in _text_if_there(file)}
    fuse = {words[1] for words in mounts_seen_by("self") if mark in words[1]}
    return loops | fuse | {f"process {pid}" for pid, words in storage_daemons() if mark in words}


def mounts_seen_by(pid: str) -> list[list[str]]:
    """The lines of proc(5)'s mounts for FUSE, as words; none if the process has ended."""
    lines = _text_if_there(Path(f"/proc/{pid}/mounts")).splitlines()
    return [words for words in map(str.split, lines) if words[2].startswith("fuse")]


def _text_if_there(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # others on this host take their devices down meanwhile
        return ""


def storage_daemons() -> Iterator[tuple[int, str]]:
    """Every storage daemon of the host with its command line and the names of its open files.

    One that has ended and waits to be reaped has none. One behind nbd has all as descriptors and names nothing.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if words.startswith("qemu-storage-daemon"):
                    yield int(entry.name), " ".join([words, *open_files(int(entry.name))])


def open_files(pid: int) -> list[str]:
    """What a process has open, as /proc names it: paths, `socket:[inode]`, `anon_inode:[kind]`.

    A descriptor that is closed while we look, such as that of a QMP client that goes, is left out.
    """
    files = list[str]()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            files.append(str(descriptor.readlink()))
    return files
