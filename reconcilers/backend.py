"""The contract behind which very different ways of making a disk live."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from reconcilers.actual import Attached, FileId, SourceKind
from reconcilers.errors import DiskError
from reconcilers.exclusive import claim
from reconcilers.images import Verdict, judge
from reconcilers.reason import Reason
from reconcilers.source import OpenSource, Pin, inspected, opened
from reconcilers.spec import Backend, DiskKey, DiskSpec, Layer


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
        """Finish what an earlier agent began: the device, if it lacks, and the stable path."""

    async def detach(self, key: DiskKey) -> None:
        """Take the disk down; raises DeviceInUse if somebody has it open, and then nothing has changed."""

    async def grow(self, key: DiskKey) -> None:
        """Let the device take on its image's new size."""

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
        if replacing:
            await _claim_from(replacing, spec, checked)
        yield checked


async def _claim_from(replacing: Reconciler, spec: DiskSpec, checked: CheckedSource) -> None:
    old = await asyncio.to_thread(replacing.observe, spec.key)
    same_image = old is not None and bool(old.identities & checked.identities)
    if same_image:
        await replacing.detach(spec.key)
    await asyncio.to_thread(_claim_all, spec, checked)
    if not same_image:
        await replacing.detach(spec.key)


def open_and_check(spec: DiskSpec, pin: Pin, stack: ExitStack, *, claimed: bool) -> CheckedSource:
    """As `checked_source`, in a thread already; `stack` closes the source and all below it.

    Each layer of a chain but the last must name the next one, and the last none.
    """
    if spec.format is None:
        raise AssertionError(f"{spec.key} has no source to open")
    fmt, offset, size = spec.format, spec.slice_offset, spec.slice_size
    lower = [layer.path for layer in spec.chain]
    verdict = inspected(
        pin,
        lambda found: judge(found.part(offset, size), fmt, read_only=spec.read_only, below=lower[0] if lower else None),
    )
    below = tuple(
        _open_layer(layer, each, lower[number] if number < len(lower) else None, stack)
        for number, (layer, each) in enumerate(zip(spec.chain, pin.below, strict=True), 1)
    )
    image = stack.enter_context(opened(pin, writable=not spec.read_only))
    checked = CheckedSource(image, verdict, below)
    if len(checked.identities) <= len(below):
        raise DiskError(Reason.INVALID_SOURCE, f"{spec.key} has one image in its backing chain twice; name each once")
    if claimed:
        _claim_all(spec, checked)
    return checked


def _open_layer(layer: Layer, pin: Pin, below: str | None, stack: ExitStack) -> CheckedSource:
    if pin.source.kind is not SourceKind.FILE:
        message = f"source {pin.path} is a block device, and an image below another must be a file; copy it to one"
        raise DiskError(Reason.NOT_AN_IMAGE, message)
    verdict = inspected(pin, lambda found: judge(found, layer.format, read_only=True, below=below))
    return CheckedSource(stack.enter_context(opened(pin, writable=False)), verdict)


def _claim_all(spec: DiskSpec, checked: CheckedSource) -> None:
    """Any number of disks may stand on one image, and nobody writes to it meanwhile."""
    claim(checked.image, spec)
    for each in checked.below:
        claim(each.image, replace(spec, read_only=True, shareable=False))
