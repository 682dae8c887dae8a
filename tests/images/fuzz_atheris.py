"""Coverage-guided fuzzing of everything that reads a header; CI gives it a few seconds.

By hand, for an hour: python -m tests.images.fuzz_atheris -max_total_time=3600 FOLDER
FOLDER keeps what was found interesting for the next time. The first byte says which format is declared. What it finds
becomes a test in test_hostile.py.
"""

import os
import sys

import atheris

with atheris.instrument_imports(include=["reconcilers.images"]):
    from reconcilers.images import judge
from reconcilers.actual import FileId, Source, SourceKind
from reconcilers.errors import DiskError
from reconcilers.source import OpenSource
from reconcilers.spec import Format

FORMATS = list(Format)
IMAGE = os.memfd_create("image")


def check(data: bytes) -> None:
    """Any bytes are let through or refused for good, with the image's name."""
    if not data:
        return
    declared, content = FORMATS[data[0] % len(FORMATS)], data[1:]
    os.ftruncate(IMAGE, 0)
    os.pwrite(IMAGE, content, 0)
    source = Source(kind=SourceKind.FILE, identity=FileId(0, 0), size_bytes=len(content))
    image, flags = OpenSource("/image", IMAGE, source), data[0]
    error = refusal(image, declared, read_only=bool(flags & 64), below="/base" if flags & 128 else None)
    assert error is None or (error.message.startswith("image /image") and not error.reason.transient)


def refusal(image: OpenSource, declared: Format, *, read_only: bool, below: str | None) -> DiskError | None:
    """Why it is refused; None if it is let through."""
    try:
        judge(image, declared, read_only=read_only, below=below)
    except DiskError as error:
        return error
    return None


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
