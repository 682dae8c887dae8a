"""What backends make of a tuning, and that asking for it comes to an end: tables, and properties over all tunings."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconcilers.actual import Actual, Attached, FileId, Source, SourceKind, TapFacts
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.honour import Feature, possible, unhonoured
from reconcilers.plan import Nothing, Replace, Tune, plan
from reconcilers.reason import Reason
from reconcilers.spec import Backend, DiskKey, DiskSpec, Format
from reconcilers.tuning import LIMITS, UNTUNED, Aio, Cache, DetectZeroes, Tuning

FILE = Source(kind=SourceKind.FILE, identity=FileId(1, 2), size_bytes=4096)
BLOCK = Source(kind=SourceKind.BLOCK, identity=FileId(3, 0), size_bytes=4096)

TUNINGS = st.builds(
    Tuning,
    cache=st.sampled_from(Cache),
    io=st.sampled_from([None, *Aio]),
    discard=st.booleans(),
    detect_zeroes=st.sampled_from(DetectZeroes),
    limits=st.lists(st.tuples(st.sampled_from(LIMITS), st.integers(1, 9)), max_size=2).map(tuple),
)
BACKENDS = st.sampled_from(Backend)


def spec(tuning: Tuning, backend: Backend) -> DiskSpec:
    form = Format.AIO if backend is Backend.BLKTAP else Format.RAW
    return DiskSpec(key=DiskKey("web", "vda"), source="/i", backend=backend, format=form, tuning=tuning)


TAP = TapFacts(
    server=ServerKind.STORAGE_DAEMON,
    device=DeviceKind.FUSE_LOOP,
    export="/export",
    process_id=7,
    unit=None,
    flushes=True,
    takes_limits=True,
)


def attached(backend: Backend, tuning: Tuning, asked: Tuning) -> Attached:
    return Attached(
        backend=backend,
        format=Format.AIO if backend is Backend.BLKTAP else Format.RAW,
        identity=(BLOCK if backend is Backend.BLOCK else FILE).identity,
        device_path="/dev/loop0",
        diskseq=1,
        size_bytes=4096,
        logical_block_size=512,
        read_only=False,
        tuning=tuning,
        asked=asked,
        slice_offset=0,
        slice_size=None,
        server="s",
        server_alive=True,
        linked=True,
        tap=TAP if backend is Backend.BLKTAP else None,
    )


def actual(one: Attached) -> Actual:
    return Actual(BLOCK if one.backend is Backend.BLOCK else FILE, one)


@given(TUNINGS, TUNINGS, BACKENDS)
def test_what_was_asked_for_once_is_not_asked_for_again(asked: Tuning, granted: Tuning, backend: Backend) -> None:
    there = attached(backend, granted, UNTUNED if backend is Backend.BLOCK else asked)
    assert plan(spec(asked, backend), actual(there)) == Nothing(Reason.AS_DESIRED)


@given(TUNINGS, TUNINGS, BACKENDS)
def test_a_change_that_the_backend_can_make_is_made(before: Tuning, wanted: Tuning, backend: Backend) -> None:
    there = attached(backend, possible(before, backend), UNTUNED if backend is Backend.BLOCK else before)
    step = plan(spec(wanted, backend), actual(there))
    assert isinstance(step, Tune | Replace) is (possible(before, backend) != possible(wanted, backend))


@given(TUNINGS, BACKENDS)
def test_what_is_possible_stays_possible(asked: Tuning, backend: Backend) -> None:
    once = possible(asked, backend)
    assert possible(once, backend) == once


@given(TUNINGS, BACKENDS)
def test_all_that_is_granted_is_honoured(asked: Tuning, backend: Backend) -> None:
    there = attached(backend, possible(asked, backend), asked)
    assert unhonoured(spec(asked, backend), there) == unhonoured(spec(asked, backend), None)
    assert unhonoured(spec(there.tuning, backend), there) == frozenset()


@pytest.mark.parametrize(
    ("backend", "before", "wanted", "step"),
    [
        (Backend.LOOP, UNTUNED, Tuning(cache=Cache.NONE), Tune),
        (Backend.LOOP, Tuning(cache=Cache.NONE), UNTUNED, Tune),
        (Backend.LOOP, UNTUNED, Tuning(discard=False), Tune),
        (Backend.LOOP, Tuning(discard=False), UNTUNED, Replace),
        (Backend.LOOP, UNTUNED, Tuning(cache=Cache.UNSAFE), Nothing),
        (Backend.LOOP, UNTUNED, Tuning(limits=(("total_iops_sec", 1),)), Nothing),
        (Backend.BLKTAP, UNTUNED, Tuning(cache=Cache.NONE), Replace),
        (Backend.BLKTAP, UNTUNED, Tuning(io=Aio.THREADS), Nothing),
        (Backend.BLKTAP, UNTUNED, Tuning(io=Aio.NATIVE), Nothing),
        (Backend.BLKTAP, UNTUNED, Tuning(limits=(("total_iops_sec", 1),)), Tune),
        (Backend.BLKTAP, UNTUNED, Tuning(limits=(("total_iops_sec", 1),), cache=Cache.NONE), Replace),
        (Backend.BLKTAP, Tuning(limits=(("total_iops_sec", 1),)), Tuning(limits=(("read_iops_sec", 2),)), Tune),
        (Backend.BLKTAP, Tuning(limits=(("total_iops_sec", 1),)), UNTUNED, Tune),
        (Backend.BLOCK, UNTUNED, Tuning(cache=Cache.NONE, discard=False), Nothing),
    ],
)
def test_how_a_change_is_made(backend: Backend, before: Tuning, wanted: Tuning, step: type) -> None:
    there = attached(backend, possible(before, backend), before)
    assert isinstance(plan(spec(wanted, backend), actual(there)), step)


def test_a_server_that_takes_no_limits_is_replaced_for_them() -> None:
    there = replace(attached(Backend.BLKTAP, UNTUNED, UNTUNED), tap=replace(TAP, takes_limits=False))
    limited = Tuning(limits=(("total_iops_sec", 1),))
    assert isinstance(plan(spec(limited, Backend.BLKTAP), actual(there)), Replace)


def test_a_part_of_a_block_device_is_never_served_as_the_whole() -> None:
    whole = spec(UNTUNED, Backend.BLOCK)
    part = replace(whole, slice_offset=512, slice_size=1024)
    for wanted, backend in ((whole, Backend.BLOCK), (part, Backend.LOOP)):
        step = plan(wanted, Actual(BLOCK, None))
        assert getattr(step, "spec", None) == replace(wanted, backend=backend)


def test_a_hosts_own_device_is_passed_on_as_it_is() -> None:
    wanted = replace(spec(UNTUNED, Backend.BLOCK), read_only=True, logical_block_size=4096)
    there = attached(Backend.BLOCK, UNTUNED, UNTUNED)
    assert unhonoured(wanted, there) == {Feature.READ_ONLY, Feature.BLOCK_SIZE}
    assert unhonoured(wanted, replace(there, read_only=True, logical_block_size=4096)) == frozenset()
