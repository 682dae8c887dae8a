"""The decision, as one table of what should be, what is, and the step; and what holds for every pair."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconcilers.actual import Actual, Attached, Claim, Fault, FileId, Hold, Source, SourceKind, TapFacts
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.plan import (
    Adopt,
    Attach,
    Detach,
    Enlarge,
    Grow,
    Keep,
    Nothing,
    Quiesce,
    Refuse,
    Replace,
    Resume,
    Revive,
    Step,
    Tune,
    Unlink,
    effective,
    plan,
)
from reconcilers.reason import Reason
from reconcilers.spec import Backend, Device, DiskKey, DiskSpec, Format, StartupPolicy
from reconcilers.tuning import UNTUNED, Cache, Tuning

MIB = 1 << 20
FILE = Source(kind=SourceKind.FILE, identity=FileId(1, 10), size_bytes=MIB)
OTHER = replace(FILE, identity=FileId(1, 11))
BLOCK = Source(kind=SourceKind.BLOCK, identity=FileId(2, 0), size_bytes=MIB)
MISSING = Fault(Reason.IMAGE_MISSING, "it is not there")
EMPTY = Fault(Reason.IMAGE_EMPTY, "it has no bytes")

LOOP = DiskSpec(key=DiskKey("vm", "vda"), source="/a", backend=Backend.LOOP, format=Format.RAW)
AIO = replace(LOOP, backend=Backend.BLKTAP, format=Format.AIO)
QCOW2 = replace(LOOP, backend=Backend.BLKTAP, format=Format.QCOW2)
PHY = replace(LOOP, backend=Backend.BLOCK)
DIRECT = replace(LOOP, tuning=Tuning(cache=Cache.NONE))
DRIVE = replace(LOOP, device=Device.CDROM, source=None, backend=None, format=None, read_only=True)

ON_LOOP = Attached(
    backend=Backend.LOOP,
    format=Format.RAW,
    identity=FILE.identity,
    device_path="/dev/loop7",
    diskseq=70,
    size_bytes=MIB,
    logical_block_size=512,
    read_only=False,
    tuning=UNTUNED,
    asked=UNTUNED,
    slice_offset=0,
    slice_size=None,
    server="kernel loop",
    server_alive=True,
    linked=True,
)
TAP = TapFacts(
    server=ServerKind.STORAGE_DAEMON,
    device=DeviceKind.FUSE_LOOP,
    export="/export",
    process_id=7,
    unit=None,
    flushes=True,
    takes_limits=True,
)
ON_AIO = replace(ON_LOOP, backend=Backend.BLKTAP, format=Format.AIO, tap=TAP)
ON_NBD = replace(ON_AIO, tap=replace(TAP, device=DeviceKind.NBD))
ON_TAPDISK = replace(ON_AIO, tap=replace(TAP, server=ServerKind.TAPDISK))
ON_DEVICE = replace(ON_AIO, identity=BLOCK.identity)
AWAITING = replace(ON_AIO, device_path="/dev/nbd0", server_alive=False, awaits_server=True)
ON_QCOW2 = replace(ON_AIO, format=Format.QCOW2)
ON_BLOCK = replace(ON_LOOP, backend=Backend.BLOCK, identity=BLOCK.identity, device_path="/dev/sdb")

# What should be, what the source is, what is there, the step, and words of its reason or message.
CASES: dict[str, tuple[DiskSpec | None, Source | Fault | None, Attached | None, type[Step], str]] = {
    "absent, nothing there": (None, None, None, Nothing, "TakenDown"),
    "absent, loop there": (None, None, ON_LOOP, Detach, ""),
    "absent, dead tap there": (None, None, replace(ON_AIO, server_alive=False), Detach, ""),
    "empty drive": (DRIVE, None, None, Nothing, "NoMedium"),
    "empty drive, medium there": (DRIVE, None, ON_LOOP, Detach, ""),
    "new loop": (LOOP, FILE, None, Attach, ""),
    "new tap": (QCOW2, FILE, None, Attach, ""),
    "new block": (PHY, BLOCK, None, Attach, ""),
    "loop as desired": (LOOP, FILE, ON_LOOP, Nothing, "AsDesired"),
    "tap as desired": (AIO, FILE, ON_AIO, Nothing, "AsDesired"),
    "block as desired": (PHY, BLOCK, ON_BLOCK, Nothing, "AsDesired"),
    "phy over a file is loop": (PHY, FILE, ON_LOOP, Nothing, "AsDesired"),
    "loop over a device is block": (LOOP, BLOCK, ON_BLOCK, Nothing, "AsDesired"),
    "tap over a device stays tap": (AIO, BLOCK, replace(ON_AIO, identity=BLOCK.identity), Nothing, "AsDesired"),
    "source missing": (LOOP, MISSING, None, Refuse, "ImageMissing"),
    "source empty": (LOOP, EMPTY, None, Refuse, "ImageEmpty"),
    "optional source missing": (
        replace(LOOP, startup_policy=StartupPolicy.OPTIONAL),
        MISSING,
        None,
        Nothing,
        "OptionalMissing",
    ),
    "optional source empty": (replace(LOOP, startup_policy=StartupPolicy.OPTIONAL), EMPTY, None, Refuse, "ImageEmpty"),
    "source missing, loop there": (LOOP, MISSING, ON_LOOP, Keep, "ImageMissing"),
    "source missing, tap dead": (AIO, MISSING, replace(ON_AIO, server_alive=False), Keep, "ServerLost"),
    "device missing, block gone": (PHY, MISSING, replace(ON_BLOCK, server_alive=False), Keep, "DeviceVanished"),
    "storage gone under a loop disk": (LOOP, MISSING, replace(ON_LOOP, server_alive=False), Keep, "StorageLost"),
    "storage back under a dead loop disk": (LOOP, FILE, replace(ON_LOOP, server_alive=False), Replace, "gone"),
    "lun on a file": (replace(PHY, device=Device.LUN), FILE, None, Refuse, "NotALun"),
    "lun on a file, loop there": (replace(PHY, device=Device.LUN), FILE, ON_LOOP, Keep, "NotALun"),
    "lun on a device": (replace(PHY, device=Device.LUN), BLOCK, None, Attach, ""),
    "another image": (LOOP, OTHER, ON_LOOP, Replace, "image"),
    "another backend": (AIO, FILE, ON_LOOP, Replace, "backend"),
    "another format": (QCOW2, FILE, ON_AIO, Replace, "format"),
    "made read-only": (replace(LOOP, read_only=True), FILE, ON_LOOP, Replace, "read-only is off and should be on"),
    "made writable": (LOOP, FILE, replace(ON_LOOP, read_only=True), Replace, "read-only is on and should be off"),
    "another slice": (replace(LOOP, slice_offset=512), FILE, ON_LOOP, Replace, "slice"),
    "another sector size": (replace(LOOP, logical_block_size=4096), FILE, ON_LOOP, Replace, "4096"),
    "no sector size said": (LOOP, FILE, replace(ON_LOOP, logical_block_size=4096), Nothing, "AsDesired"),
    "read-only over a writable block": (replace(PHY, read_only=True), BLOCK, ON_BLOCK, Nothing, "AsDesired"),
    "a claimed block is to write": (PHY, BLOCK, replace(ON_BLOCK, claim=Claim(True, False)), Adopt, ""),
    "a claimed block as desired": (PHY, BLOCK, replace(ON_BLOCK, claim=Claim(False, False)), Nothing, "AsDesired"),
    "another device": (PHY, replace(BLOCK, identity=FileId(3, 0)), ON_BLOCK, Replace, "image"),
    "direct I/O not granted": (DIRECT, FILE, replace(ON_LOOP, asked=DIRECT.tuning), Nothing, "AsDesired"),
    "direct I/O not wanted": (LOOP, FILE, replace(ON_LOOP, tuning=DIRECT.tuning, asked=DIRECT.tuning), Tune, ""),
    "tap dead, its device waits": (AIO, FILE, AWAITING, Revive, ""),
    "tap dead, its device waits, another image": (AIO, OTHER, AWAITING, Replace, "what serves it is gone"),
    "tap dead, its device waits, to be tuned": (
        replace(AIO, tuning=Tuning(cache=Cache.UNSAFE)),
        FILE,
        AWAITING,
        Replace,
        "what serves it is gone",
    ),
    "tap dead, its device waits, source missing": (AIO, MISSING, AWAITING, Keep, "ServerLost"),
    "tap dead, its device waits, absent": (None, None, AWAITING, Detach, ""),
    "tap dead": (AIO, FILE, replace(ON_AIO, server_alive=False), Replace, "what serves it is gone"),
    "link missing": (LOOP, FILE, replace(ON_LOOP, linked=False), Adopt, ""),
    "tap without device": (AIO, FILE, replace(ON_AIO, device_path=None, size_bytes=0, linked=False), Adopt, ""),
    "tap without device, its source missing": (AIO, MISSING, replace(ON_AIO, device_path=None), Keep, "was taken away"),
    "image grown": (LOOP, replace(FILE, size_bytes=2 * MIB), ON_LOOP, Grow, ""),
    "image grown by less than a sector": (LOOP, replace(FILE, size_bytes=MIB + 511), ON_LOOP, Nothing, "AsDesired"),
    "image of a tap grown": (AIO, replace(FILE, size_bytes=2 * MIB), ON_AIO, Grow, ""),
    "image of a tap grown by a byte": (AIO, replace(FILE, size_bytes=MIB + 1), ON_AIO, Grow, ""),
    "image of a tap grown by less than a sector of 4 KiB": (
        AIO,
        replace(FILE, size_bytes=MIB + 3584),
        replace(ON_AIO, logical_block_size=4096),
        Nothing,
        "AsDesired",
    ),
    "image of a tap grown to the end of its last sector": (
        AIO,
        replace(FILE, size_bytes=MIB - 100),
        ON_AIO,
        Nothing,
        "AsDesired",
    ),
    "image of a tap shrunk": (AIO, replace(FILE, size_bytes=MIB // 2), ON_AIO, Keep, "ImageShrunk"),
    "image of a tap over nbd grown": (AIO, replace(FILE, size_bytes=2 * MIB), ON_NBD, Revive, ""),
    "image of a tapdisk grown": (AIO, replace(FILE, size_bytes=2 * MIB), ON_TAPDISK, Replace, "has grown"),
    "image of a read-only tap grown": (
        replace(AIO, read_only=True),
        replace(FILE, size_bytes=2 * MIB),
        replace(ON_AIO, read_only=True),
        Replace,
        "has grown",
    ),
    "device under a tap grown": (AIO, replace(BLOCK, size_bytes=2 * MIB), ON_DEVICE, Nothing, "AsDesired"),
    "to be held": (AIO, FILE, replace(ON_AIO, hold=Hold("12:00", held=False)), Quiesce, ""),
    "held": (AIO, FILE, replace(ON_AIO, hold=Hold("12:00", held=True)), Keep, "12:00"),
    "held, and absent": (None, None, replace(ON_AIO, hold=Hold("12:00", held=True)), Keep, "Quiesced"),
    "held for long enough": (AIO, FILE, replace(ON_AIO, hold=Hold(None, held=True)), Resume, ""),
    "held, and its server gone": (
        AIO,
        FILE,
        replace(ON_AIO, hold=Hold("12:00", held=True), server_alive=False),
        Replace,
        "is gone",
    ),
    "image shrunk": (LOOP, replace(FILE, size_bytes=MIB // 2), ON_LOOP, Keep, "ImageShrunk"),
    "tap found its image corrupt": (QCOW2, FILE, replace(ON_QCOW2, damage="no"), Keep, "ImageDamaged"),
    "file of a tap grown": (QCOW2, replace(FILE, size_bytes=2 * MIB), ON_QCOW2, Nothing, "AsDesired"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_table(case: str) -> None:
    desired, source, attached, step, words = CASES[case]
    decided = plan(desired, Actual(source, attached))
    assert type(decided) is step
    said = [str(getattr(decided, name, "")) for name in ("reason", "message", "why")]
    assert words in " ".join(said)


def test_a_stray_link_goes_before_anything_else() -> None:
    for desired in (None, LOOP, DRIVE):
        assert plan(desired, Actual(FILE, None, stray_link="/dev/loop9")) == Unlink("/dev/loop9")
    vanished = replace(ON_BLOCK, server_alive=False)
    assert not vanished.has_its_device
    assert plan(PHY, Actual(MISSING, vanished, stray_link="/dev/sdb")) == Unlink("/dev/sdb")


def test_the_step_carries_the_effective_backend() -> None:
    assert plan(PHY, Actual(FILE, None)) == Attach(replace(PHY, backend=Backend.LOOP))
    sliced = replace(LOOP, slice_offset=512)
    assert plan(sliced, Actual(BLOCK, None)) == Attach(sliced)


identities = st.builds(FileId, st.integers(1, 2), st.sampled_from([0, 10]))
sizes = st.sampled_from([512, MIB, MIB + 1, 2 * MIB])
sources = st.one_of(
    st.builds(Source, kind=st.sampled_from(SourceKind), identity=identities, size_bytes=sizes),
    st.builds(Fault, st.sampled_from(Reason), st.just("a fault")),
)
tunings = st.builds(
    Tuning, cache=st.sampled_from(Cache), discard=st.booleans(), limits=st.sampled_from([(), (("read_iops_sec", 1),)])
)
specs = st.builds(
    DiskSpec,
    key=st.just(LOOP.key),
    device=st.sampled_from(Device),
    source=st.just("/a"),
    backend=st.sampled_from(Backend),
    format=st.sampled_from([Format.RAW, Format.AIO, Format.QCOW2]),
    read_only=st.booleans(),
    tuning=tunings,
    logical_block_size=st.sampled_from([None, 512, 4096]),
    slice_offset=st.sampled_from([0, 512]),
    slice_size=st.sampled_from([None, 512]),
    startup_policy=st.sampled_from(StartupPolicy),
)
attachments = st.builds(
    Attached,
    backend=st.sampled_from(Backend),
    format=st.sampled_from([Format.RAW, Format.AIO, Format.QCOW2]),
    identity=identities,
    device_path=st.sampled_from(["/dev/loop7", None]),
    diskseq=st.sampled_from([70, None]),
    size_bytes=sizes,
    logical_block_size=st.sampled_from([512, 4096]),
    read_only=st.booleans(),
    tuning=tunings,
    asked=tunings,
    slice_offset=st.sampled_from([0, 512]),
    slice_size=st.sampled_from([None, 512]),
    server=st.just("a server"),
    server_alive=st.booleans(),
    awaits_server=st.booleans(),
    linked=st.booleans(),
)


@given(specs | st.none(), sources | st.none(), attachments | st.none())
def test_nothing_is_taken_down_without_a_reason_to(
    desired: DiskSpec | None, source: Source | Fault | None, attached: Attached | None
) -> None:
    step = plan(desired, Actual(source, attached))
    match step:
        case Detach():
            assert desired is None
        case Replace(spec, there, why):
            assert isinstance(source, Source)
            assert there == attached
            assert why
            assert spec.key == LOOP.key
        case Revive(spec, there):
            waits = there.awaits_server and not there.server_alive
            assert waits or (there.tap and there.tap.device is DeviceKind.NBD)
            assert isinstance(source, Source)
            assert (spec.key, there.identity, there.format) == (LOOP.key, source.identity, spec.format)
        case Attach() | Refuse():
            assert attached is None
        case Keep() | Adopt() | Grow() | Tune():
            assert attached is not None or source is None
    if isinstance(source, Fault) and desired is not None:
        assert isinstance(step, Keep if attached else Refuse | Nothing)


@pytest.mark.parametrize(
    ("desired", "source", "attached", "enlarges"),
    [
        (LOOP, FILE, ON_LOOP, True),
        (AIO, FILE, ON_AIO, True),
        (LOOP, replace(FILE, size_bytes=2 * MIB), ON_LOOP, False),
        (AIO, OTHER, ON_AIO, False),
        (AIO, FILE, replace(ON_AIO, server_alive=False), False),
        (None, None, ON_AIO, False),
        (AIO, FILE, None, False),
    ],
)
def test_a_larger_disk_is_made_when_all_is_as_desired(
    desired: DiskSpec | None, source: Source | None, attached: Attached | None, enlarges: bool
) -> None:
    step = plan(desired, Actual(source, attached, asked_size=4 * MIB))
    assert isinstance(step, Enlarge) is enlarges


@given(specs, sources)
def test_what_was_attached_as_planned_is_as_desired(desired: DiskSpec, source: Source | Fault) -> None:
    """One attach is enough: nothing is replaced again and again."""
    step = plan(desired, Actual(source, None))
    if not isinstance(step, Attach) or not isinstance(source, Source):
        return
    spec = step.spec
    assert spec == effective(desired, source)
    assert spec.backend
    assert spec.format
    up = 511 if spec.backend is Backend.BLKTAP else 0
    made = Attached(
        backend=spec.backend,
        format=spec.format if spec.backend is not Backend.BLOCK else Format.RAW,
        identity=source.identity,
        device_path="/dev/loop7",
        diskseq=70,
        size_bytes=(source.size_bytes - spec.slice_offset + up) // 512 * 512,
        logical_block_size=spec.logical_block_size or 512,
        read_only=spec.read_only,
        tuning=UNTUNED,
        asked=spec.tuning if spec.backend is not Backend.BLOCK else UNTUNED,
        slice_offset=spec.slice_offset,
        slice_size=spec.slice_size,
        server="a server",
        server_alive=True,
        linked=True,
    )
    if spec.backend is Backend.BLOCK and spec.format is not Format.RAW:
        return  # the parser makes no such thing
    assert plan(desired, Actual(source, made)) == Nothing(Reason.AS_DESIRED)
