"""Images judged by what their headers say, before any server opens them.

A header can only confirm the format that a definition declares, or have the image refused; nothing is probed, and no
name in it is followed. Each format has a file of its own, pure over the few bytes that a `Window` shows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from reconcilers.errors import DiskError
from reconcilers.images import qcow, qcow2, qed, vdi, vhd, vhdx, vmdk
from reconcilers.images.facts import Facts
from reconcilers.images.window import Window
from reconcilers.reason import Reason
from reconcilers.source import OpenSource
from reconcilers.spec import Format

__all__ = ["Verdict", "judge"]

_CHECKS: dict[Format, Callable[[Window], Facts]] = {
    Format.QCOW: qcow.check,
    Format.QCOW2: qcow2.check,
    Format.QED: qed.check,
    Format.VDI: vdi.check,
    Format.VHD: vhd.check,
    Format.VHDX: vhdx.check,
    Format.VMDK: vmdk.check,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be known of an image that may be served.

    Attributes:
        warning: For people: what is odd about it. None for most.
        raw_size: It is served as raw bytes, so many from its first on, although its format is not called raw.
    """

    warning: str | None = None
    raw_size: int | None = None


def judge(image: OpenSource, declared: Format, *, read_only: bool, below: str | None = None) -> Verdict:
    """Refuse an image that is not what its definition says, or that would lead a server elsewhere.

    Args:
        image: The image, open for reading.
        declared: The definition's format.
        read_only: No server will write to it.
        below: Path of the image that the definition declares below this one.

    Raises:
        DiskError: FormatMismatch, BackingUndeclared, BackingMissing, UnsupportedFeature or ImageDamaged; KernelError
            if its storage fails.
    """
    window = Window(image, declared)
    found = _look(window)
    if declared in {Format.RAW, Format.AIO}:
        return Verdict(warning=_look_alike(image, declared, found) if found else None)
    if found is not declared and not (declared is Format.VHD and _ends_like_vhd(window)):
        raise window.mismatch(found)
    facts = _CHECKS[declared](window)
    _need_declared(window, facts.backing, below)
    if facts.broken and not read_only:
        raise window.damaged(facts.broken)
    if facts.to_be_written and read_only:
        raise window.damaged(f"{facts.to_be_written}, and its definition has it read-only")
    return Verdict(raw_size=facts.raw_size)


def _need_declared(window: Window, named: str | None, declared: str | None) -> None:
    """The definition alone says what is opened below an image; that the header's name differs means a wrong base."""
    if named is not None and declared is None:
        raise window.names_another("names a backing file")
    if named is None and declared is not None:
        message = f"{window} stands alone, and its definition declares an image below it; take the backingStore out"
        raise DiskError(Reason.BACKING_MISSING, message)
    if named is not None and declared is not None and _last_part(named) != _last_part(declared):
        message = (
            f"{window} was made on an image called {_last_part(named)[:80]!r}, and its definition declares {declared}; "
            "name the right one, or change the header's name with qemu-img rebase -u"
        )
        raise DiskError(Reason.BACKING_UNDECLARED, message)


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def _look(window: Window) -> Format | None:
    """What an image looks like. For people only: no decision is made by it but to refuse."""
    head = window.peek(0, 512)
    starts = {
        b"QFI\xfb\x00\x00\x00\x01": Format.QCOW,
        b"QFI\xfb\x00\x00\x00\x02": Format.QCOW2,
        b"QFI\xfb\x00\x00\x00\x03": Format.QCOW2,
        b"QED\x00": Format.QED,
        b"KDMV": Format.VMDK,
        b"COWD": Format.VMDK,
        b"vhdxfile": Format.VHDX,
    }
    found = next((fmt for magic, fmt in starts.items() if head.startswith(magic)), None)
    if found is None and head[64:68] == b"\x7f\x10\xda\xbe":
        return Format.VDI
    if found is None and (head.startswith(vhd.COOKIE) or _ends_like_vhd(window)):
        return Format.VHD
    return found


def _ends_like_vhd(window: Window) -> bool:
    return window.peek(window.size - 512, len(vhd.COOKIE)) == vhd.COOKIE


def _look_alike(image: OpenSource, declared: Format, found: Format) -> str:
    """It is served as raw all the same, as declared: by its header a guest would choose what the host opens."""
    return (
        f"image {image.path} begins like {found}, but is declared {declared} and served as that; "
        f"if the guest should see the {found} image's content, declare {found}"
    )
