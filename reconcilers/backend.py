"""The contract behind which very different ways of making a disk live."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from reconcilers.actual import SECTOR, Attached, FileId, SourceKind
from reconcilers.errors import DiskError
from reconcilers.exclusive import claim
from reconcilers.images import Verdict, judge
from reconcilers.reason import Reason
from reconcilers.source import OpenSource, Pin, inspected, opened
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format


class Reconciler(Protocol):
    """Makes, finds and takes down the disks of one backend. Called for one disk at a time, never twice for one key.

    Every method raises `DiskError` when it can't do its work, and then leaves nothing half made.
    """

    backend: Backend

    def observe(self, key: DiskKey) -> Attached | None:
        """What this backend has for the disk. Blocks; call it in a thread."""

    async def attach(self, spec: DiskSpec, pin: Pin, *, replacing: "Reconciler | None" = None) -> str | None:
        """Bring the disk up.

        Args:
            spec: With the effective backend.
            pin: What its source is; the path is not looked at again.
            replacing: Has the disk now. All that can be checked of the new one is checked before it is asked to detach.

        Returns:
            A warning for people, or None.
        """

    async def adopt(self, spec: DiskSpec) -> None:
        """Finish what an earlier agent began: the device, if it lacks, the claim, if it is another, and the path."""

    async def detach(self, key: DiskKey) -> None:
        """Take the disk down; raises DeviceInUse if somebody has it open, and then nothing has changed."""

    async def grow(self, key: DiskKey, size_bytes: int) -> None:
        """Let the device, and what serves it, take on its image's new size, of which so much belongs to the disk."""

    async def tune(self, spec: DiskSpec) -> None:
        """Ask for the spec's tuning, online. What the host does not grant is left as it is, and is no error."""


@dataclass(frozen=True, slots=True)
class CheckedSource:
    """An open source whose header is what was declared, and what else is to be known of it.

    Attributes:
        image: The source, open as it will be served.
        verdict: On its header.
        below: The images below it, open for reading only, the uppermost first.
    """

    image: OpenSource
    verdict: Verdict
    below: tuple["CheckedSource", ...] = ()

    @property
    def identities(self) -> frozenset[FileId]:
        """Every file that is open."""
        return frozenset({self.image.source.identity, *(each.image.source.identity for each in self.below)})


@asynccontextmanager
async def checked_source(spec: DiskSpec, pin: Pin, *, claimed: bool = False) -> AsyncIterator[CheckedSource]:
    """Open and check what `spec` names, in a thread, as its storage may hang; closed at the end of the block.

    Args:
        spec: With a source.
        pin: That source.
        claimed: Lock it too.

    Raises:
        DiskError: What `opened`, `judge` and `claim` say against it.
    """
    stack = ExitStack()
    try:
        yield await asyncio.to_thread(open_and_check, spec, pin, stack, claimed=claimed)
    finally:
        await asyncio.to_thread(stack.close)  # closing a file on hung storage hangs as well


@asynccontextmanager
async def claimed_source(spec: DiskSpec, pin: Pin, replacing: Reconciler | None) -> AsyncIterator[CheckedSource]:
    """Open, check and lock what `spec` names, and take down what is replaced at the latest moment.

    The new image is locked before the old disk goes, so that a disk is not lost to an image that can't be had; only
    where both are one image is that not possible, as the old disk has its lock.

    Raises:
        DiskError: What `checked_source`, `claim` or the detaching says against it.
    """
    async with checked_source(spec, pin, claimed=replacing is None) as checked:
        yield await _claim_from(replacing, spec, checked) if replacing else checked


async def _claim_from(replacing: Reconciler, spec: DiskSpec, checked: CheckedSource) -> CheckedSource:
    old = await asyncio.to_thread(replacing.observe, spec.key)
    same_image = old is not None and bool(old.identities & checked.identities)
    if same_image:
        await replacing.detach(spec.key)
    claimed = await asyncio.to_thread(_claim_all, spec, checked)
    if not same_image:
        await replacing.detach(spec.key)
    return claimed


def open_and_check(spec: DiskSpec, pin: Pin, stack: ExitStack, *, claimed: bool) -> CheckedSource:
    """As `checked_source`, in a thread already; `stack` closes the source and all below it.

    Each layer of a chain but the last must name the next one, and the last none.
    """
    verdict, *lower = [
        inspected(each, lambda found, number=number: _judge(spec, found, number))  # type: ignore[misc]
        for number, each in enumerate((pin, *pin.below))
    ]
    image = stack.enter_context(opened(pin, writable=not spec.read_only))
    below = [CheckedSource(_open_layer(each, stack), one) for each, one in zip(pin.below, lower, strict=True)]
    checked = CheckedSource(image, verdict, tuple(below))
    if len(checked.identities) <= len(below):
        raise DiskError(Reason.INVALID_SOURCE, f"{spec.key} has one image in its backing chain twice; name each once")
    return _claim_all(spec, checked) if claimed else checked


def _open_layer(pin: Pin, stack: ExitStack) -> OpenSource:
    if pin.source.kind is not SourceKind.FILE:
        message = f"source {pin.path} is a block device, and an image below another must be a file; copy it to one"
        raise DiskError(Reason.NOT_AN_IMAGE, message)
    return stack.enter_context(opened(pin, writable=False))


def _judge(spec: DiskSpec, image: OpenSource, number: int) -> Verdict:
    """Judge the image at a place of the chain; the source itself is number 0."""
    if spec.format is None:
        raise AssertionError(f"{spec.key} has no source to judge")
    below = spec.chain[number].path if number < len(spec.chain) else None
    if number:
        return judge(image, spec.chain[number - 1].format, read_only=True, below=below)
    part = image.part(spec.slice_offset, spec.slice_size)
    if part.source.size_bytes < (wanted := max(SECTOR, spec.slice_size or 0)):
        message = (
            f"source {image.path} has {image.source.size_bytes} bytes, and the definition's slice of it, from byte "
            f"{spec.slice_offset} on, needs {wanted}; grow the image, or name a slice that is in it"
        )
        raise DiskError(Reason.IMAGE_TOO_SMALL, message)
    return judge(part, spec.format, read_only=spec.read_only, below=below)


def _claim_all(spec: DiskSpec, checked: CheckedSource) -> CheckedSource:
    """Lock every image, and judge it once more: until now, somebody could have written to it.

    Any number of disks may stand on one image, and nobody writes to it meanwhile.
    """
    claim(checked.image, spec)
    for each in checked.below:
        claim(each.image, replace(spec, read_only=True, shareable=False))
    if spec.format in {Format.RAW, Format.AIO}:
        return checked  # it is what it is, whatever is written to it
    verdict, *lower = [
        _judge(spec, each.image.as_it_is_now(), number) for number, each in enumerate((checked, *checked.below))
    ]
    below = [replace(each, verdict=one) for each, one in zip(checked.below, lower, strict=True)]
    return replace(checked, verdict=verdict, below=tuple(below))
