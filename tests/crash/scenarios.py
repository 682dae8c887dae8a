"""What an agent is in the middle of when it is killed."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.cli.grow import ask as ask_for
from agent.cli.quiesce import ask
from reconcilers.blktap.tap import TapFolder
from reconcilers.growth import GrowRequests
from reconcilers.holds import HoldRequests
from tests.crash.world import GUEST, HOST_DEVICE, CrashBench, Disk

LOOP = Disk("vda", "a.img")
READ_ONLY = replace(LOOP, read_only=True)
NO_DISCARD = replace(LOOP, driver="discard='ignore' cache='none'")
TAP = Disk("vda", "q.qcow2", "qcow2")
AIO = Disk("vda", "a.img", "aio")
BLOCK = Disk("vda", HOST_DEVICE)
CDROM = Disk("hda", "c.iso", read_only=True, device="cdrom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A state of rest, something that happens, and the state of rest that must come of it.

    Attributes:
        name: For people.
        before: The disks at first; None if `reset` sees to everything.
        happens: What sets the agent going.
        after: The disks that come of it; None if only `says` tells.
        phase: The guest's phase then.
        reset: What makes the scenario possible once more.
        starts: The agent does not run at first, and its start is part of the scenario.
        stores: What the store does is looked at; elsewhere it is passed over, as it is the same everywhere.
        says: What the status must say besides.
        stops: The agent ends.
        meanwhile: What happens before the agent is started again, if it was killed; `end` must come of that.
        afterwards: What happens when all else is done; `end` must come of that.
        end: The disks and the guest's phase at the very end.
        sockets: Taps are sockets.
    """

    name: str
    before: tuple[Disk, ...] | None
    happens: Callable[[CrashBench], None]
    after: tuple[Disk, ...] | None
    phase: str = "Up"
    reset: Callable[[CrashBench], None] = lambda _: None
    starts: bool = False
    stores: bool = False
    says: Callable[[CrashBench], bool] = lambda _: True
    stops: bool = False
    meanwhile: Callable[[CrashBench], None] | None = None
    afterwards: Callable[[CrashBench], None] | None = None
    end: tuple[tuple[Disk, ...], str] = ((), "Down")
    sockets: bool = False

    @property
    def is_retried(self) -> bool:
        """Whether the agent tries for ever what it can't do now."""
        return self.phase in {"InUse", "Lost"}


def _change(name: str, before: tuple[Disk, ...], after: tuple[Disk, ...]) -> Scenario:
    return Scenario(name=name, before=before, happens=lambda bench: bench.want(*after), after=after)


def _detach(name: str, disk: Disk) -> Scenario:
    return Scenario(name=name, before=(disk,), happens=CrashBench.want_nothing, after=(), phase="Down")


def _taken_back(name: str, disk: Disk) -> Scenario:
    return replace(_change(f"attach {name}, and it is taken back", (), (disk,)), meanwhile=CrashBench.want_nothing)


def _iops(number: int) -> str:
    return f"<iotune><total_iops_sec>{number}</total_iops_sec></iotune>"


def _grow(bench: CrashBench) -> None:
    with (bench.images / "a.img").open("r+b") as image:
        image.truncate(2 << 20)


def _says_grown(bench: CrashBench) -> bool:
    return bool(bench.disk(GUEST, "vda").get("size_bytes") == 2 << 20)


def _hold_still(bench: CrashBench) -> None:
    ask(HoldRequests(bench.runtime), [AIO.key], 600)


def _let_it_go_on(bench: CrashBench) -> None:
    HoldRequests(bench.runtime).forget(AIO.key)


def _says_held(bench: CrashBench) -> bool:
    error = bench.disk(GUEST, "vda").get("error") or {}
    return error.get("reason") == "Quiesced" and _tap(bench).held() is True


def _have_held(bench: CrashBench) -> None:
    bench.want(AIO)
    assert bench.wait_settled((AIO,), "Up") == []
    _hold_still(bench)
    assert bench.becomes(lambda: _says_held(bench))


def _tap(bench: CrashBench) -> TapFolder:
    return TapFolder.of(bench.runtime / "taps", AIO.key)


def _take_down(bench: CrashBench) -> None:
    bench.want_nothing()
    assert bench.wait_settled((), "Down") == []


def _hand_over(bench: CrashBench) -> None:
    """Once before, since what an agent writes first to its store has a head that comes but once."""
    bench.hand_over()
    bench.until(bench.obeys_newest)


def _shrink_back(bench: CrashBench) -> None:
    _take_down(bench)
    os.truncate(bench.images / "a.img", 1 << 20)


def _shrink_qcow2_back(bench: CrashBench) -> None:
    _take_down(bench)
    words = ["qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", str(bench.images / "q.qcow2"), "8M"]
    subprocess.run(words, check=True)


def _says_enlarged(size_bytes: int) -> Callable[[CrashBench], bool]:
    def says(bench: CrashBench) -> bool:
        open_request = GrowRequests(bench.runtime).asked(LOOP.key)
        return open_request is None and bench.disk(GUEST, "vda").get("size_bytes") == size_bytes

    return says


def _use_and_want_nothing(bench: CrashBench) -> None:
    bench.hold_open("vda")
    bench.want_nothing()


def _kill_server(bench: CrashBench) -> None:
    server = bench.servers()[0]
    os.kill(server, signal.SIGKILL)
    bench.until(lambda: server not in bench.servers())  # or all would seem to be at rest before it is dead


def _use_and_kill_server(bench: CrashBench) -> None:
    bench.hold_open("vda")
    _kill_server(bench)


def _kill_server_and_go(bench: CrashBench) -> None:
    _kill_server(bench)
    bench.go()


def _leave_a_mess_and_go(bench: CrashBench) -> None:
    """As agents do that are killed while they make the first disk of a guest, a claim and a tap."""
    (bench.runtime / "disks" / "gone").mkdir()
    (bench.runtime / "disks" / "gone" / ".vda.new").symlink_to("/dev/null")
    (bench.runtime / "claims").mkdir(exist_ok=True)
    (bench.runtime / "claims" / "0123456789abcdef.new").touch()
    (bench.runtime / "taps" / "0123456789abcdef").mkdir(parents=True)
    (bench.runtime / "taps" / "0123456789abcdef" / "tap.json.new").touch()
    (bench.runtime / "loops" / "0123456789abcdef").touch()
    bench.go()


def _forget_everything(bench: CrashBench) -> None:
    _take_down(bench)
    bench.stop(signal.SIGKILL)
    bench.push(GUEST, b"")
    shutil.rmtree(bench.runtime)
    shutil.rmtree(bench.folder / "state")


def _new_host(bench: CrashBench) -> None:
    _forget_everything(bench)
    bench.start()
    bench.wait_synced()


def _new_host_with_document(bench: CrashBench) -> None:
    _forget_everything(bench)
    bench.want(LOOP)


def _push_newer(bench: CrashBench) -> None:
    bench.push_document(f"<domain type='kvm'><name>{GUEST}</name></domain>", generation=bench.next_generation())


def _push_junk(bench: CrashBench) -> None:
    bench.push(GUEST, "<domain>")


def _says_rejected(bench: CrashBench) -> bool:
    return bench.condition(GUEST, "Accepted").get("reason") == "MalformedXml"


def _says_lost(bench: CrashBench) -> bool:
    return not bench.servers() and bench.disk(GUEST, "vda").get("phase") == "Lost"


SCENARIOS = [
    _change("attach loop", (), (LOOP,)),
    _change("attach tap", (), (TAP,)),
    _change("attach block", (), (BLOCK,)),
    _taken_back("loop", LOOP),
    _taken_back("tap", TAP),
    _taken_back("block", BLOCK),
    _detach("detach loop", LOOP),
    _detach("detach tap", TAP),
    _detach("detach block", BLOCK),
    Scenario(
        name="detach what is in use",
        before=(LOOP,),
        happens=_use_and_want_nothing,
        after=(LOOP,),
        phase="InUse",
        afterwards=CrashBench.let_go,
    ),
    Scenario(
        name="detach what is in use, and it is wanted again",
        before=(LOOP,),
        happens=_use_and_want_nothing,
        after=(LOOP,),
        phase="InUse",
        meanwhile=lambda bench: bench.want(LOOP),
        end=((LOOP,), "Up"),
    ),
    _change("replace loop by loop", (LOOP,), (replace(LOOP, image="b.img"),)),
    _change("replace loop by tap on the same image", (LOOP,), (AIO,)),
    _change("replace tap by loop", (TAP,), (LOOP,)),
    _change("replace tap by tap", (TAP,), (AIO,)),
    _change("replace loop by block", (LOOP,), (BLOCK,)),
    _change("rename the target", (LOOP,), (replace(LOOP, target="sda"),)),
    _change("make read-only", (LOOP,), (READ_ONLY,)),
    _change("make writable", (READ_ONLY,), (LOOP,)),
    Scenario(name="grow", before=(LOOP,), happens=_grow, after=(LOOP,), reset=_shrink_back, says=_says_grown),
    Scenario(name="grow a tap", before=(AIO,), happens=_grow, after=(AIO,), reset=_shrink_back, says=_says_grown),
    Scenario(
        name="enlarge loop",
        before=(LOOP,),
        happens=lambda bench: ask_for(GrowRequests(bench.runtime), LOOP.key, 2 << 20),
        after=(LOOP,),
        reset=_shrink_back,
        says=_says_enlarged(2 << 20),
    ),
    Scenario(
        name="enlarge a tap",
        before=(TAP,),
        happens=lambda bench: ask_for(GrowRequests(bench.runtime), TAP.key, 16 << 20),
        after=(TAP,),
        reset=_shrink_qcow2_back,
        says=_says_enlarged(16 << 20),
    ),
    Scenario(
        name="hold a tap still",
        before=(AIO,),
        happens=_hold_still,
        after=None,
        says=_says_held,
        afterwards=_let_it_go_on,
        end=((AIO,), "Up"),
    ),
    Scenario(name="let a tap go on", before=None, happens=_let_it_go_on, after=(AIO,), reset=_have_held),
    _change("attach loop without discard", (), (NO_DISCARD,)),
    _detach("detach loop without discard", NO_DISCARD),
    _change("tune loop", (LOOP,), (NO_DISCARD,)),
    _change("tune tap", (TAP,), (replace(TAP, more=_iops(2000)),)),
    _change("change the medium", (CDROM,), (replace(CDROM, image="d.iso"),)),
    _change("eject the medium", (CDROM,), (replace(CDROM, image=""),)),
    Scenario(name="rebuild a tap", before=(TAP,), happens=_kill_server, after=(TAP,)),
    Scenario(
        name="rebuild a tap that is in use",
        before=(TAP,),
        happens=_use_and_kill_server,
        after=None,
        phase="Lost",
        says=_says_lost,
        afterwards=CrashBench.let_go,
        end=((TAP,), "Up"),
    ),
    Scenario(name="rebuild a tap at the start", before=(TAP,), happens=_kill_server_and_go, after=(TAP,), starts=True),
    replace(_change("attach a socket", (), (TAP,)), sockets=True),
    replace(_detach("detach a socket", TAP), sockets=True),
    Scenario(name="revive a socket", before=(TAP,), happens=_kill_server, after=(TAP,), sockets=True),
    Scenario(
        name="start in a mess",
        before=(LOOP,),
        happens=_leave_a_mess_and_go,
        after=(LOOP,),
        starts=True,
    ),
    Scenario(
        name="first start",
        before=None,
        happens=CrashBench.go,
        after=(LOOP,),
        reset=_new_host_with_document,
        starts=True,
        stores=True,
    ),
    Scenario(
        name="accept the first document",
        before=None,
        happens=CrashBench.want,
        after=(),
        reset=_new_host,
        stores=True,
    ),
    Scenario(name="accept a newer generation", before=(), happens=_push_newer, after=(), stores=True),
    Scenario(
        name="follow a trust statement",
        before=(LOOP,),
        happens=CrashBench.hand_over,
        after=(LOOP,),
        reset=_hand_over,
        says=CrashBench.obeys_newest,
        stores=True,
    ),
    Scenario(name="reject", before=(LOOP,), happens=_push_junk, after=(LOOP,), stores=True, says=_says_rejected),
    Scenario(
        name="withdraw",
        before=(LOOP,),
        happens=lambda bench: bench.push(GUEST, b""),
        after=(LOOP,),
        phase="Withdrawn",
        stores=True,
    ),
    Scenario(
        name="absent",
        before=(),
        happens=CrashBench.want_nothing,
        after=(),
        phase="Down",
        stores=True,
    ),
    Scenario(
        name="stop",
        before=(LOOP,),
        happens=lambda bench: bench.send(signal.SIGTERM),
        reset=_take_down,
        stops=True,
        after=(LOOP,),
        stores=True,
    ),
]
