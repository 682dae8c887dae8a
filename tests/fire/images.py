"""Images whose every byte is on record: what was written, to which file, whatever that file is called by now."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from reconcilers.actual import FileId
from tests.fire.blocks import SIZE, block, blocks_of, compare
from tests.workbench import Bench

MIB = 1 << 20
LARGEST = 8 * MIB


@dataclass
class Content:
    """One file: a name that it keeps, how it is to be read, and the latest generation of each block in it."""

    kept: Path
    fmt: str
    stream: int
    size: int
    written: dict[int, int] = field(default_factory=dict)


class Images:
    """Images under names that documents use; a file that was replaced is kept under another name."""

    def __init__(self, bench: Bench, raw: int, qcow2: int) -> None:
        self._bench = bench
        self._count = 0
        self.contents: dict[FileId, Content] = {}
        self.raw = [f"raw-{number}" for number in range(raw)]
        self.qcow2 = [f"qcow2-{number}" for number in range(qcow2)]
        for name in (*self.raw, *self.qcow2):
            self.put_in_place(name)

    def path(self, name: str) -> Path:
        """What documents call it."""
        return self._bench.images / name

    def identity(self, name: str) -> FileId:
        """The file that has the name now."""
        facts = self.path(name).stat()
        return FileId(facts.st_dev, facts.st_ino)

    def content(self, name: str) -> Content:
        """What the file that has the name now has in it."""
        return self.contents[self.identity(name)]

    def put_in_place(self, name: str) -> None:
        """Give a name to a new file, in one step."""
        self._count += 1
        fmt = "raw" if name in self.raw else "qcow2"
        size = MIB if fmt == "raw" else LARGEST
        kept = self._bench.folder / "kept" / f"{name}-{self._count}"
        kept.parent.mkdir(exist_ok=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", fmt, kept, str(size)], check=True)
        draft = self._bench.folder / "draft"
        draft.hardlink_to(kept)
        draft.rename(self.path(name))
        self.contents[self.identity(name)] = Content(kept, fmt, self._count, size)

    def grow(self, name: str) -> bool:
        """Make a raw image larger, unless it is large enough."""
        content = self.content(name)
        if content.fmt != "raw" or content.size >= LARGEST:
            return False
        content.size += MIB
        with self.path(name).open("r+b") as image:
            image.truncate(content.size)
        return True

    def write(self, fd: int, content: Content, index: int) -> None:
        """Write a block through a disk that is open at `fd`, and have it reach the image."""
        count = os.lseek(fd, 0, os.SEEK_END) // SIZE
        index %= count
        generation = content.written.get(index, 0) + 1
        assert os.pwrite(fd, block(content.stream, index, generation), index * SIZE) == SIZE
        os.fsync(fd)
        content.written[index] = generation

    def check(self) -> None:
        """Every byte that was written through a disk is in the right image, and no other is in any."""
        raw = self._bench.folder / "raw"
        for content in self.contents.values():
            subprocess.run(["qemu-img", "convert", "-f", content.fmt, "-O", "raw", content.kept, raw], check=True)
            compare(blocks_of(raw), content.stream, content.written)
