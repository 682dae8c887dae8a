"""How a disk's bytes are to be moved, from what its definition says of it."""

from agent.definition.text import DiskText
from reconcilers.reason import Reason
from reconcilers.tuning import LIMITS, UNTUNED, Aio, Cache, DetectZeroes, Limits, Tuning, waits

_CACHES = ("default", *Cache)
_DISCARDS = ("unmap", "ignore")
_AIOS = tuple(Aio)
_DETECTIONS = tuple(DetectZeroes)
_LARGEST_LIMIT = 10**15  # THROTTLE_VALUE_MAX, QEMU's include/qemu/throttle.h
_LONGEST_PEAK = 2**32 - 1
_LONGEST_WAIT = 16.0
"""Seconds. systemd ends a server that shows no sign of life for 60 (WatchdogSec=), and asks for one every 20."""


def tuning(text: DiskText) -> Tuning:
    """Read cache, io, discard, detect_zeroes and iotune; what can't be is refused."""
    if not (text.cache or text.io or text.discard or text.detect_zeroes or text.limits):
        return UNTUNED
    cache = text.choice("cache", text.cache, _CACHES) or "default"
    io = text.choice("io", text.io, _AIOS)
    discard = text.choice("discard", text.discard, _DISCARDS)
    zeroes = DetectZeroes(text.choice("detect_zeroes", text.detect_zeroes, _DETECTIONS) or DetectZeroes.OFF)
    if zeroes is DetectZeroes.UNMAP and discard != "unmap":
        zeroes = DetectZeroes.ON  # as libvirt has it, whatever the default for discard
    return Tuning(
        cache=Cache.WRITEBACK if cache == "default" else Cache(cache),
        io=Aio(io) if io else None,
        discard=discard != "ignore",
        detect_zeroes=zeroes,
        limits=_limits(text),
    )


def refuse_too_slow(text: DiskText, limits: Limits) -> None:
    """Refuse limits of a tap under which its server would be taken for one that hangs, and be ended under its guest."""
    for name, seconds in waits(limits).items():
        if seconds > _LONGEST_WAIT:
            message = (
                f"{name} {dict(limits)[name]} has a request of 1 MiB take {seconds:.0f} s, and its server would count "
                f"as hung; {_LONGEST_WAIT:.0f} s are the most. Limits are in bytes or requests a second, not in KiB"
            )
            text.refuse(Reason.INVALID_VALUE, text.limits[name], message)


def _limits(text: DiskText) -> Limits:
    """The limits that are set, if they go together; 0 means none, as in libvirt."""
    given = {name: text.number(name, text.limits.get(name), "bytes, requests or seconds") or 0 for name in LIMITS}
    for name, value in given.items():
        if fault := value and _fault(name, given):
            text.refuse(Reason.INVALID_VALUE, text.limits[name], f"{name} {fault}")
    return tuple((name, value) for name, value in sorted(given.items()) if value)


def _fault(name: str, given: dict[str, int]) -> str | None:
    """Why a limit makes no sense beside the others; the rules are libvirt's and QEMU's."""
    if given[name] > _LARGEST_LIMIT:
        return f"is more than {_LARGEST_LIMIT}"
    if name == "size_iops_sec":
        some = any(given[f"{which}_iops_sec"] for which in ("total", "read", "write"))
        return None if some else "has no iops_sec to count by"
    total = name.replace("read", "total").replace("write", "total")
    if name != total and given[total]:
        return f"excludes {total}; keep one of them"
    if name.endswith("_length"):
        return _fault_of_length(given[name], given[name.removesuffix("_length")])
    if name.endswith("_max") and given[name] < (given[name.removesuffix("_max")] or _LARGEST_LIMIT + 1):
        return "is below the limit that it is the peak of, or there is none"
    return None


def _fault_of_length(seconds: int, peak: int) -> str | None:
    if not peak:
        return "lasts for no peak; give the peak too"
    if seconds > _LONGEST_PEAK:
        return f"is more than {_LONGEST_PEAK} seconds"
    if seconds * peak > _LARGEST_LIMIT:
        return f"times its peak, {seconds} s * {peak}/s, is more than {_LARGEST_LIMIT}; lower one of them"
    return None
