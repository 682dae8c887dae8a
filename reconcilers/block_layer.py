"""What sysfs says of a block device: what it is called, what it stands on, and its numbers."""

import os
from collections.abc import Callable, Iterator

from reconcilers import sysfs


def node(rdev: int) -> str | None:
    """The device's node in /dev by the kernel's own name; None if there is no such device."""
    facts = _facts(rdev)
    return f"/dev/{facts['DEVNAME']}" if "DEVNAME" in facts else None


def names(rdev: int) -> list[str]:
    """What a device is called by those who made it: the kernel's node, and device mapper's name."""
    found = node(rdev)
    mapped = _text(f"{_folder(rdev)}/dm/name")
    return ([found] if found else []) + ([f"/dev/mapper/{mapped}"] if mapped else [])


def number(rdev: int, name: str) -> int | None:
    """One of a device's numbers, or of its disk if it is a partition; None where the kernel has none."""
    folder = _folder(rdev)
    for path in (f"{folder}/{name}", f"{folder}/../{name}"):
        text = _text(path)
        if text is not None:
            return int(text)
    return None


def stack(rdev: int) -> Iterator[int]:
    """The device and all that it stands on: its whole disk, and what device mapper or MD made it of."""
    return _reached(rdev, _directly_below)


def tower(rdev: int) -> set[int]:
    """The device, all that it stands on and all that stands on it: whoever writes to one of them writes to another."""
    return {*stack(rdev), *_reached(rdev, _directly_above)}


def whole(rdev: int) -> int:
    """The disk of which the device is a partition, or the device itself."""
    folder = _folder(rdev)
    disk = _device(f"{folder}/..") if sysfs.exists(f"{folder}/partition") else None
    return rdev if disk is None else disk


def _reached(rdev: int, directly: Callable[[str], Iterator[int]]) -> Iterator[int]:
    waiting, seen = [rdev], {rdev}
    while waiting:
        device = waiting.pop()
        yield device
        for each in directly(_folder(device)):
            if each not in seen:
                seen.add(each)
                waiting.append(each)


def _directly_below(folder: str) -> Iterator[int]:
    try:
        below = [f"{folder}/slaves/{name}" for name in os.listdir(f"{folder}/slaves")]  # noqa: PTH208 - hot
    except FileNotFoundError:  # a partition has none, and is a part of its disk
        below = [f"{folder}/.."] if sysfs.exists(f"{folder}/partition") else []
    yield from (device for path in below if (device := _device(path)) is not None)


def _directly_above(folder: str) -> Iterator[int]:
    above = [f"{folder}/holders/{name}" for name in _entries(f"{folder}/holders")]
    parts = [f"{folder}/{name}" for name in _entries(folder)]
    above += [part for part in parts if sysfs.exists(f"{part}/partition")]
    yield from (device for path in above if (device := _device(path)) is not None)


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - hot
    except FileNotFoundError:
        return []


def _folder(rdev: int) -> str:
    return f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}"


def _facts(rdev: int) -> dict[str, str]:
    lines = (_text(f"{_folder(rdev)}/uevent") or "").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _device(folder: str) -> int | None:
    major, _, minor = (_text(f"{folder}/dev") or "").partition(":")
    return os.makedev(int(major), int(minor)) if minor else None


def _text(path: str) -> str | None:
    try:
        return sysfs.read(path)
    except OSError:
        return None
