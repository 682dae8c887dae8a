"""Every spelling of "serve this disk with …", reduced to a backend and a format.

A spelling is one or more words joined by colons: `loop`, `qcow2`, `blktap:aio`, `tap:tapdisk:aio`. The same words
occur in libvirt's `<driver>` (https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms), in the
attributes of `<disk>` that were proposed before it, and in front of Xen's sources (xl-disk-configuration(5)).
"""

from dataclasses import dataclass
from functools import lru_cache

from reconcilers.spec import Backend, Format

_BACKENDS = {
    "loop": Backend.LOOP,
    "file": Backend.LOOP,
    "phy": Backend.BLOCK,
    "tap": Backend.BLKTAP,
    "tap2": Backend.BLKTAP,
    "blktap": Backend.BLKTAP,
    "blktap2": Backend.BLKTAP,
}

_FORMATS = {
    "raw": Format.RAW,
    "iso": Format.RAW,  # an ISO image is read byte by byte, as raw is
    "aio": Format.AIO,
    "sync": Format.AIO,  # blktap's synchronous engine over the same raw bytes
    "qcow": Format.QCOW,
    "qcow2": Format.QCOW2,
    "vhd": Format.VHD,
    "vpc": Format.VHD,
    "vhdx": Format.VHDX,
    "vmdk": Format.VMDK,
    "vdi": Format.VDI,
    "qed": Format.QED,
}

_NEITHER = frozenset({"qemu", "qdisk", "tapdisk", "ioemu"})
"""Words that name a program or an era, and choose neither backend nor format."""

WORDS = frozenset(_BACKENDS) | frozenset(_FORMATS) | _NEITHER

UNSERVED_FORMATS = frozenset({"auto", "bochs", "cloop", "cow", "dir", "dmg", "fat", "luks", "ploop"})
"""Formats that libvirt documents and that no server here opens, or that ask for probing."""

DRIVER_NAMES = ", ".join([*_BACKENDS, "qemu"])
FORMAT_NAMES = ", ".join(_FORMATS)


@dataclass(frozen=True, slots=True)
class Wish:
    """What one place of a definition asks for.

    Attributes:
        spelling: The words as written.
        backend: None leaves the choice to other places and to the format.
        format: None leaves it to other places.
    """

    spelling: str
    backend: Backend | None
    format: Format | None


class UnknownWord(Exception):  # noqa: N818 - read as "unknown word: x"
    """A spelling holds a word that is neither a driver nor a format; the word is `args[0]`."""


class Conflict(Exception):  # noqa: N818 - read as "conflict: …"
    """Wishes exclude each other; the sentence says which."""


@lru_cache(maxsize=256)
def wish(spelling: str) -> Wish:
    """Read one spelling, e.g. `blktap:aio`. The last format counts, so that `tap:aio:qcow` is qcow as in xl.

    Raises:
        UnknownWord: For a word that is neither driver nor format; case counts, as it does in libvirt.
    """
    words = spelling.split(":")
    for word in words:
        if word not in WORDS:
            raise UnknownWord(word)
    backends = [_BACKENDS[word] for word in words if word in _BACKENDS]
    formats = [_FORMATS[word] for word in words if word in _FORMATS]
    return Wish(spelling, backends[0] if backends else None, formats[-1] if formats else None)


@lru_cache(maxsize=256)  # the disks of a host mostly ask for the same few things
def decide(wishes: tuple[Wish, ...], *, on_block_device: bool) -> tuple[Backend, Format]:
    """Choose the backend and the format that satisfy every wish.

    A format without a driver is never dropped: all but raw go to blktap, so that a qcow2 image can't be taken
    for a raw one.

    Args:
        wishes: What the definition asks for in its several places.
        on_block_device: The definition declares the source as a block device.

    Raises:
        Conflict: Two backends, two formats, or a backend that cannot read the format.
    """
    backends = {item.backend: item for item in wishes if item.backend}
    images = {_image(item.format): item for item in wishes if item.format}
    for rivals in (backends, images):
        if len(rivals) > 1:
            spellings = " and ".join(f"'{item.spelling}'" for item in rivals.values())
            raise Conflict(f"{spellings} exclude each other; keep one of them")
    backend = next(iter(backends), None)
    image = next(iter(images), Format.RAW)
    if backend is None:
        blktap = image is not Format.RAW or any(item.format is Format.AIO for item in wishes)
        backend = Backend.BLKTAP if blktap else Backend.BLOCK if on_block_device else Backend.LOOP
    if backend is Backend.BLKTAP:
        return backend, Format.AIO if image is Format.RAW else image
    if image is not Format.RAW:
        driver, form = backends[backend].spelling, images[image].spelling
        raise Conflict(f"'{driver}' serves raw images only and '{form}' is none; name the driver blktap or qemu")
    return backend, image


def _image(declared: Format) -> Format:
    """How the bytes are read: aio is blktap's word for raw."""
    return Format.RAW if declared is Format.AIO else declared
