"""What is wrong with a guest, as people read it."""

from collections.abc import Sequence
from datetime import timedelta

from agent.status import DiskStatus, GuestStatus, now

NAMED_AT_MOST = 6
"""Names that a sentence holds before it says how many more there are."""

TOLD_OF_FOR = timedelta(days=1)
"""How long an outage that is over is spoken of; it stays in the status."""


def printable(text: str) -> str:
    """Foreign text without what a terminal would act upon."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def names(those: Sequence[str]) -> str:
    """Some names in a sentence: `a, b, c and 12 more`."""
    shown = ", ".join(those[:NAMED_AT_MOST])
    rest = len(those) - NAMED_AT_MOST
    return f"{shown} and {rest} more" if rest > 0 else shown


def counted(number: int, thing: str) -> str:
    """A number of things: `1 host`, `12 hosts`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def sentence(guest: GuestStatus, disk: DiskStatus) -> str:
    """What is wrong with a disk, and on a second line what to do about it."""
    name = f"{guest.host}: {guest.guest}/{disk.target}"
    if disk.error is None:
        return printable(f"{name} is {disk.phase}")
    again = f" Attempt {disk.attempts}; the next one is at {disk.next_retry:%H:%M:%S} UTC." if disk.next_retry else ""
    why = printable(f"{name} is {disk.phase}: {disk.error.reason}: {disk.error.message}")
    return f"{why}\n  what to do: {disk.error.reason.remedy}{again}"


def outage(guest: GuestStatus, disk: DiskStatus) -> str | None:
    """When a disk could not be read and written last; None if it never was so, or not since yesterday."""
    last = disk.last_outage
    if last is None or (last.ended and now() - last.ended > TOLD_OF_FOR):
        return None
    name, began = f"{guest.host}: {guest.guest}/{disk.target}", f"{last.began:%Y-%m-%d %H:%M:%S} UTC"
    if last.ended is None:
        return printable(f"{name} has been out since {began}: {last.reason}")
    seconds = (last.ended - last.began).total_seconds()
    return printable(f"{name} was out for {seconds:.3g} s from {began} on: {last.reason}")


def sentences(guest: GuestStatus, disks: Sequence[DiskStatus]) -> str:
    """The same of several disks, below each other."""
    return "\n".join(["", *(sentence(guest, disk) for disk in disks)])
