"""What a backend makes of a disk's tuning, and what of the definition it therefore does not honour. Pure."""

from dataclasses import replace
from enum import StrEnum
from functools import lru_cache

from reconcilers.actual import Attached
from reconcilers.spec import Backend, DiskSpec
from reconcilers.tuning import UNTUNED, Aio, Cache, Tuning


class Feature(StrEnum):
    """What a definition may ask for and only some backends do."""

    CACHE = "cache"
    IO = "io"
    DISCARD = "discard"
    DETECT_ZEROES = "detect_zeroes"
    LIMITS = "limits"
    READ_ONLY = "read_only"
    BLOCK_SIZE = "block_size"


@lru_cache(maxsize=1024)
def possible(asked: Tuning, backend: Backend) -> Tuning:
    """What a backend makes of `asked` on a host that grants all it can.

    A loop device has neither flush after every write nor limits: those of cgroups need the guest's own group. Its
    requests are asynchronous in the kernel with direct I/O, and worker threads' without. A host's own block device is
    passed through as it is.
    """
    match backend:
        case Backend.LOOP:
            direct = asked.cache.direct
            cache, io = (Cache.NONE, Aio.NATIVE) if direct else (Cache.WRITEBACK, Aio.THREADS)
            return Tuning(cache=cache, io=io, discard=asked.discard)
        case Backend.BLKTAP:
            # Native requests wait in the page cache all the same, so the server refuses that combination.
            waits = asked.io is None or (asked.io is Aio.NATIVE and not asked.cache.direct)
            return replace(asked, io=Aio.THREADS) if waits else asked
        case Backend.BLOCK:
            return UNTUNED


def unhonoured(spec: DiskSpec, attached: Attached | None) -> frozenset[Feature]:
    """What `spec` asks for and does not get.

    Args:
        spec: What should be.
        attached: What is there; None tells what can be told without looking: a host may grant less.
    """
    if spec.backend is None:
        return frozenset()
    asked, given = spec.tuning, attached.tuning if attached else possible(spec.tuning, spec.backend)
    sector = attached.logical_block_size if attached else spec.logical_block_size
    if attached is None and spec.backend is Backend.BLOCK:
        sector = None  # the device's own
    not_read_only = attached is not None and spec.read_only and not attached.read_only
    return _lacking(asked, given, not_read_only, spec.logical_block_size not in {None, sector})


@lru_cache(maxsize=1024)  # the disks of a host mostly ask for the same few things, and are shown often
def _lacking(asked: Tuning, given: Tuning, not_read_only: bool, other_sector: bool) -> frozenset[Feature]:
    lacks = {
        Feature.CACHE: asked.cache is not given.cache,
        Feature.IO: asked.io not in {None, given.io},
        Feature.DISCARD: asked.discard is not given.discard,
        Feature.DETECT_ZEROES: asked.detect_zeroes is not given.detect_zeroes,
        Feature.LIMITS: asked.limits != given.limits,
        Feature.READ_ONLY: not_read_only,
        Feature.BLOCK_SIZE: other_sector,
    }
    return frozenset(feature for feature, lacking in lacks.items() if lacking)
