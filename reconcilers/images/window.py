"""The little of an image that is read before any server opens it, and the words in which it is refused."""

import struct

from reconcilers.errors import DiskError
from reconcilers.reason import Reason
from reconcilers.source import OpenSource
from reconcilers.spec import Format

HEAD_BYTES = 1 << 20
TAIL_BYTES = 3 * 512
FAR_BYTES = 1 << 16
"""What may be read behind the head, once: VHDX keeps the list of its metadata there."""

TABLE_BYTES = 64 << 20
"""A table that a server holds in memory is no larger, so that a header can cost a host no more than this."""


class Window:
    """An image through which only its first mebibyte, its last three sectors, and 64 KiB once can be seen.

    All else of a header, tables above all, is judged by where it says it is. Bytes that are not there raise: an image
    that ends, or shrinks, in the midst of its header is damaged.
    """

    def __init__(self, image: OpenSource, declared: Format) -> None:
        self._image = image
        self._declared = declared
        self._far = FAR_BYTES

    @property
    def size(self) -> int:
        """Length of the image in bytes."""
        return self._image.source.size_bytes

    def take(self, at: int, length: int) -> bytes:
        """Exactly so many bytes from byte `at`.

        Raises:
            DiskError: ImageDamaged where the image has none, KernelError where its storage fails.
        """
        if not (at >= 0 and length >= 0 and at + length <= self.size):
            raise self.damaged(f"ends before the {length} bytes that should be at {at}")
        if at + length > HEAD_BYTES and at < self.size - TAIL_BYTES:
            self._far -= length
            if self._far < 0:
                raise self.damaged(f"has a header that goes on behind its first {HEAD_BYTES} bytes")
        return self._read(at, length)

    def peek(self, at: int, length: int) -> bytes:
        """As `take`, for a look at what may be shorter than that."""
        at = max(0, at)
        return self._read(at, max(0, min(length, self.size - at)))

    def unpack(self, layout: str, at: int) -> tuple[int, ...]:
        """Numbers at byte `at`, laid out as for `struct`."""
        return struct.unpack(layout, self.take(at, struct.calcsize(layout)))

    def number(self, layout: str, at: int) -> int:
        """One number at byte `at`."""
        return self.unpack(layout, at)[0]

    def need(self, holds: bool, otherwise: str) -> None:
        """Refuse the image as damaged unless something holds."""
        if not holds:
            raise self.damaged(otherwise)

    def need_table(self, name: str, at: int, length: int, *, behind: int, unit: int) -> None:
        """Refuse a table that is not where tables can be.

        Args:
            name: What it is called.
            at: Its first byte.
            length: Its bytes.
            behind: What comes before it ends here.
            unit: It begins at a multiple of this, and the image may end within its last one.
        """
        self.need(length <= TABLE_BYTES, f"has a {name} of {length} bytes, more than any server should hold")
        self.need(at >= behind and at % unit == 0, f"has its {name} at byte {at}, where none can be")
        end = -(-self.size // unit) * unit
        self.need(at < self.size and at + length <= end, f"ends before its {name}, {length} bytes at {at}")

    def damaged(self, what: str) -> DiskError:
        """The refusal of a header that contradicts itself or its file."""
        message = f"{self} {what}; look at it with qemu-img check, or take an older copy"
        return DiskError(Reason.IMAGE_DAMAGED, message)

    def unsupported(self, what: str, remedy: str = "convert it with qemu-img convert") -> DiskError:
        """The refusal of a sound header that asks for what is not served."""
        return DiskError(Reason.UNSUPPORTED_FEATURE, f"{self} {what}; {remedy}")

    def names_another(self, what: str) -> DiskError:
        """The refusal of a header by which the image's author would choose what the host opens."""
        return DiskError(
            Reason.BACKING_UNDECLARED,
            f"{self} {what}, which its definition does not declare; flatten it with qemu-img convert, or declare "
            "what is below it (backingStore): an image must not choose which other files the host opens",
        )

    def mismatch(self, found: Format | None) -> DiskError:
        """The refusal of an image that begins like something else."""
        what = f"that of {found}" if found else "not of any known format"
        return DiskError(
            Reason.FORMAT_MISMATCH,
            f"{self} is declared {self._declared}, but its header is {what}; declare what it is, or replace it",
        )

    def __str__(self) -> str:
        return f"image {self._image.path}"

    def _read(self, at: int, length: int) -> bytes:
        try:
            found = self._image.read(length, at)
        except OSError as error:
            message = f"reading {self} failed: {error.strerror} (errno {error.errno})"
            raise DiskError(Reason.KERNEL_ERROR, message) from error
        if len(found) < length:
            raise self.damaged("became shorter while it was looked at")
        return found
