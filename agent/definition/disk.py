"""From what was read of one disk to the definition that it makes."""

import re
from typing import NamedTuple

from agent.definition.classification import Handling, names_of
from agent.definition.driver import (
    DRIVER_NAMES,
    FORMAT_NAMES,
    UNSERVED_FORMATS,
    WORDS,
    Conflict,
    UnknownWord,
    Wish,
    decide,
    wish,
)
from agent.definition.model import DiskDefinition
from agent.definition.text import Claim, DiskText, shown
from agent.definition.tuning import refuse_too_slow, tuning
from reconcilers.honour import unhonoured
from reconcilers.reason import Reason
from reconcilers.spec import (
    LAYERED,
    TARGET_NAME,
    WRITABLE_BY_MANY,
    Backend,
    Device,
    DiskKey,
    DiskSpec,
    Format,
    Layer,
    StartupPolicy,
)
from reconcilers.tuning import Tuning

OWN_DOMAINS = frozenset({"dom0", "0", "Domain-0"})
"""What Xen calls the domain that the agent runs in."""

PLAIN_SCRIPTS = frozenset({"block", "qubes-block"})
"""Hotplug scripts that take the source for what it is; all others give it a meaning of their own."""

_OTHER_TYPES = frozenset({"network", "volume", "dir", "nvme", "vhostuser", "vdpa"})
_DEVICES = frozenset(Device)
_POLICIES = tuple(StartupPolicy)
_SECTORS = (512, 1024, 2048, 4096)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff]")
_PREFIX = re.compile(r"([a-z][a-z0-9]*):")
_LONGEST_PATH = 4095
_LONGEST_SOURCE = 8192


class _Source(NamedTuple):
    """A source without its Xen prefixes, which are a wish of their own."""

    path: str | None = None
    wish: Wish | None = None
    served: bool = True


def define(text: DiskText, *, guest: str) -> DiskDefinition:
    """Decide what one disk's text means. Everything that is wrong with it is found, not only the first thing.

    Args:
        text: What was read; its lists of names and findings are completed.
        guest: The guest's name, for the spec's key.
    """
    target = _target(text)
    device = _device(text)
    source = _source(text)
    wishes = _wishes(text, source)
    backend, image = _backend(text, source, wishes)
    if source.served and source.path is None and device in {Device.DISK, Device.LUN}:
        text.refuse(Reason.MISSING_SOURCE, None, f"disk '{target}' has no source; name its image or block device")
    if device is Device.LUN and backend in {Backend.LOOP, Backend.BLKTAP}:
        text.refuse(
            Reason.NOT_A_LUN,
            text.device,
            f"device='lun' passes SCSI commands to a block device, and the definition asks for {backend}; "
            "use device='disk', or type='block' with a raw driver",
        )
    chain = _chain(text, image)
    read_only = text.read_only or device is Device.CDROM
    if text.shareable and not read_only and image and image not in WRITABLE_BY_MANY:
        text.refuse(
            Reason.UNSUPPORTED_FEATURE,
            text.shareable,
            f"only raw images can be shareable and writable: of a {image} image each guest's server would write "
            "metadata of its own, which destroys it; make the disk read-only or not shareable, or convert the image "
            "(qemu-img convert)",
        )
    details = _details(text)
    if backend is Backend.BLKTAP:
        refuse_too_slow(text, details.tuning.limits)
    spec = None
    if target is not None and not text.findings:
        spec = DiskSpec(
            key=DiskKey(guest, target),
            device=device,
            source=source.path,
            backend=backend,
            format=image,
            read_only=read_only,
            shareable=text.shareable is not None,
            logical_block_size=details.logical_block_size,
            slice_offset=details.slice_offset,
            slice_size=details.slice_size,
            startup_policy=details.startup_policy,
            tuning=details.tuning,
            chain=chain,
        )
        _by_backend(text, spec)
    return DiskDefinition(
        target=target,
        device=device,
        type=text.type.text if text.type else "block" if text.bare_is_device and backend is Backend.BLOCK else "file",
        source=source.path,
        backend=backend,
        format=image,
        read_only=read_only,
        shareable=text.shareable is not None,
        honoured=tuple(text.names[Handling.HONOURED]),
        passed=tuple(text.names[Handling.PASSED]),
        unhonoured=tuple(text.names[Handling.UNHONOURED]),
        unknown=tuple(text.unknown),
        refused=tuple(text.findings),
        spec=spec,
        line=text.place.line,
    )


def _target(text: DiskText) -> str | None:
    """The target without Xen's decorations: `ioemu:hda` is hda, and `hdc:cdrom` a cdrom."""
    claim = text.target
    if claim is None:
        text.refuse(Reason.MISSING_TARGET, None, "the disk has no target; name one, for example vda")
        return None
    target, _, suffix = claim.text.removeprefix("ioemu:").partition(":")
    if suffix and text.device is None:
        text.device = claim._replace(text=suffix)
    if not TARGET_NAME.fullmatch(target):
        text.refuse(
            Reason.INVALID_TARGET,
            claim,
            f"target {shown(target)} can't be a file name; use up to 32 ASCII letters, digits and _.- "
            "beginning with a letter or digit, for example vda",
        )
    return target


def _device(text: DiskText) -> Device:
    claim = text.device
    if claim is None:
        return Device.DISK
    if claim.text not in _DEVICES:
        text.refuse(Reason.INVALID_VALUE, claim, f"device {shown(claim.text)} is not one of {', '.join(Device)}")
        return Device.DISK
    return Device(claim.text)


def _source(text: DiskText) -> _Source:
    """Where the bytes are. A disk whose source is of another type is refused once, not for each of its parts."""
    kind = text.type.text if text.type else "file"
    if kind in _OTHER_TYPES:
        text.refuse(
            Reason.UNSUPPORTED_SOURCE,
            text.type,
            f"a disk of type '{kind}' is not served; give the guest an image (type='file') or a block device "
            "(type='block'), or leave this disk to the hypervisor",
        )
        return _Source(served=False)
    if text.source is None:
        return _Source()
    words, rest = [], text.source.text
    if len(rest) > _LONGEST_SOURCE:
        message = f"source {shown(rest)} is longer than {_LONGEST_SOURCE} characters; name it by its path"
        text.refuse(Reason.INVALID_SOURCE, text.source, message)
        return _Source(served=False)
    while (prefix := _PREFIX.match(rest)) and prefix[1] in WORDS:
        words.append(prefix[1])
        rest = rest[prefix.end() :]
    if prefix and not words:
        text.refuse(
            Reason.UNSUPPORTED_SOURCE,
            text.source,
            f"source {shown(text.source.text)} is not a path on this host; name an image or a block device, or "
            "leave this disk to the hypervisor",
        )
        return _Source(path=text.source.text, served=False)
    said = wish(":".join(words)) if words else None
    return _Source(path=_path(text, rest, said), wish=said)


def _path(text: DiskText, rest: str, said: Wish | None) -> str | None:
    """The source's path, absolute. Xen names devices relative to /dev, and so does libvirt for `type='block'`."""
    if not rest:
        return None
    is_device = said.backend is Backend.BLOCK if said else text.bare_is_device
    if is_device or (text.type and text.type.text == "block"):
        rest = rest if rest.startswith("/") else f"/dev/{rest}"
    fault = _fault(rest)
    if fault:
        text.refuse(Reason.INVALID_SOURCE, text.source, f"source {shown(rest)} {fault}; name it by its absolute path")
    return rest


def _fault(path: str) -> str | None:
    """Why a path is not one that the agent will open."""
    if not path.startswith("/"):
        return "is not an absolute path"
    if ".." in path.split("/"):
        return "has '..' in it"
    if _CONTROL.search(path):
        return "has control characters in it"
    if len(path.encode()) > _LONGEST_PATH:
        return f"is longer than {_LONGEST_PATH} bytes"
    return None


def _wishes(text: DiskText, source: _Source) -> list[Wish]:
    """Every driver spelling of the disk, in the order of its places."""
    drivers = list(text.drivers)
    if text.type and text.type.text not in _OTHER_TYPES | {"file", "block"}:
        drivers.insert(0, (text.type, Reason.INVALID_VALUE))
    wishes = [source.wish] if source.wish else []
    for claim, reason in drivers if source.served else ():
        try:
            wishes.append(wish(claim.text))
        except UnknownWord as unknown:
            _refuse_word(text, claim, reason, unknown.args[0])
    return wishes


def _refuse_word(text: DiskText, claim: Claim, reason: Reason, word: str) -> None:
    if word in UNSERVED_FORMATS and reason is Reason.UNKNOWN_FORMAT:
        message = f"no server opens format '{word}', and formats are never probed; convert the image (qemu-img convert)"
        text.refuse(Reason.FORMAT_UNSUPPORTED, claim, f"{message}; use one of {FORMAT_NAMES}")
        return
    known = {
        Reason.UNKNOWN_FORMAT: f"format {shown(word)} is not known; use one of {FORMAT_NAMES}",
        Reason.UNKNOWN_DRIVER: f"driver {shown(word)} is not known; use one of {DRIVER_NAMES}",
    }
    other = f"type {shown(claim.text)} is not known; use file or block"
    text.refuse(reason, claim, known.get(reason, other))


def _backend(text: DiskText, source: _Source, wishes: list[Wish]) -> tuple[Backend | None, Format | None]:
    if not source.served or source.path is None:
        return None, None
    on_block_device = text.type is not None and text.type.text == "block"
    if text.bare_is_device and source.path.startswith("/dev/"):
        on_block_device = True
    try:
        return decide(tuple(wishes), on_block_device=on_block_device)
    except Conflict as conflict:
        at = text.drivers[0][0] if text.drivers else text.source
        text.refuse(Reason.CONFLICTING_DRIVER, at, f"the disk's driver is not clear: {conflict}")
        return None, None


def _chain(text: DiskText, image: Format | None) -> tuple[Layer, ...]:
    """The images below the source. All but the last must be of a format that can stand on another image."""
    chain: list[Layer] = []
    for layer in text.layers:
        fault = _fault(layer.source.text)
        if fault:
            message = f"source {shown(layer.source.text)} {fault}; name it by its absolute path"
            text.refuse(Reason.INVALID_SOURCE, layer.source, message)
        form = _layer_format(text, layer.format)
        if fault or form is None:
            return ()
        chain.append(Layer(layer.source.text, form))
    above = [image, *(layer.format for layer in chain)][: len(chain)]
    if unfit := [form for form in above if form not in LAYERED]:
        message = (
            f"'backingStore' is not served below a {unfit[0] or 'missing'} image, only below "
            f"{', '.join(sorted(LAYERED))}; take it out"
        )
        text.refuse(Reason.UNSUPPORTED_FEATURE, text.layers[0].source, message)
        return ()
    return tuple(chain)


def _layer_format(text: DiskText, claim: Claim) -> Format | None:
    try:
        said = wish(claim.text)
    except UnknownWord as unknown:
        _refuse_word(text, claim, Reason.UNKNOWN_FORMAT, unknown.args[0])
        return None
    if said.backend or said.format is None:
        _refuse_word(text, claim, Reason.UNKNOWN_FORMAT, claim.text)
        return None
    return Format.AIO if said.format is Format.RAW else said.format


class _Details(NamedTuple):
    logical_block_size: int | None
    slice_offset: int
    slice_size: int | None
    startup_policy: StartupPolicy
    tuning: Tuning


def _details(text: DiskText) -> _Details:
    """The settings that change how the source is attached, each checked against its range."""
    policy = text.choice("startupPolicy", text.startup_policy, _POLICIES)
    sector = text.block_size("logical_block_size", text.logical_block_size)
    if sector and sector not in _SECTORS:
        allowed = ", ".join(map(str, _SECTORS))
        text.refuse(
            Reason.INVALID_VALUE, text.logical_block_size, f"logical_block_size {sector} is not one of {allowed}"
        )
    size = text.number("the slice's size", text.slice_size)
    if size == 0:
        text.refuse(Reason.INVALID_VALUE, text.slice_size, "a slice of 0 bytes is no disk; give its size in bytes")
    return _Details(
        logical_block_size=sector or None,
        slice_offset=text.number("the slice's offset", text.slice_offset) or 0,
        slice_size=size,
        startup_policy=StartupPolicy(policy or StartupPolicy.MANDATORY),
        tuning=tuning(text),
    )


def _by_backend(text: DiskText, spec: DiskSpec) -> None:
    """Move to the unhonoured what the backend that serves the disk does not do."""
    honoured = text.names[Handling.HONOURED]
    for name in names_of(unhonoured(spec, None), honoured):
        honoured.remove(name)
        text.names[Handling.UNHONOURED].append(name)
