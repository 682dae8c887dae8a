"""What a sound header says that a server, or whoever starts it, must know."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one image.

    Attributes:
        backing: The name of the image below it, as the header has it; None if it stands alone.
        raw_size: The image is its disk's bytes from the first on, and the disk has so many of them.
        to_be_written: Why a server must write to the image before it can serve it; None if it need not.
        broken: Why a server must not write to the image; None if it may.
    """

    backing: str | None = None
    raw_size: int | None = None
    to_be_written: str | None = None
    broken: str | None = None
