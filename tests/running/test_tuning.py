"""Cache, io, discard, detect_zeroes and iotune on real parts: what is honoured has its effect, the rest is named."""

import asyncio
import mmap
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reconcilers.blktap.grant import has_io_uring
from reconcilers.blktap.storage_daemon import flushes_every_write, version
from tests.on_host import open_files
from tests.running.test_quiesce import holds, writing
from tests.running.tuning import (
    allocated,
    ask,
    dirty_pages,
    discard,
    nodes,
    punch,
    read_past_the_cache,
    zero_out,
)
from tests.workbench import Bench, domain

MIB = 1 << 20
FORMATS = [("aio", "raw"), ("qcow", "qcow"), ("qcow2", "qcow2"), ("vhd", "vpc"), ("vmdk", "vmdk"), ("vdi", "vdi")]


def disk(driver: str, image: Path, settings: str, more: str = "") -> str:
    """Disk vda of vm1."""
    return f"<disk type='file'><driver {driver} {settings}/><source file='{image}'/><target dev='vda'/>{more}</disk>"


LOOP, TAP, QCOW2 = "name='loop'", "name='tap2' type='aio'", "name='tap2' type='qcow2'"


def bring_up(bench: Bench, text: str, step: str = "attach", *, lacking: Sequence[str] = (), **fields: object) -> Any:
    """Push vm1 with this disk, and wait until `step` has brought it to this state; returns the disk's status."""
    before, old = len(steps(bench)), bench.disk("vm1", "vda").get("diskseq")
    bench.push("vm1", domain("vm1", text))
    bench.until(lambda: step in steps(bench)[before:])
    bench.until(lambda: step == "tune" or bench.disk("vm1", "vda").get("diskseq") != old)
    bench.until_status("vm1", "vda", phase="Up", unhonoured=sorted(lacking), **fields)
    return bench.disk("vm1", "vda")


def steps(bench: Bench) -> list[str]:
    """The steps that were taken so far."""
    return [line["step"] for line in bench.log_lines() if line["event"] == "done"]


def write(path: Path, data: bytes, offset: int = 0) -> None:
    """Write through a device, and flush."""
    with path.open("r+b", buffering=0) as device:
        os.pwrite(device.fileno(), data, offset)
        os.fsync(device.fileno())


def command_line(bench: Bench) -> str:
    """That of the only server."""
    (pid,) = bench.servers()
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@contextmanager
def plain_file_system(folder: Path) -> Iterator[Path]:
    """One with neither direct I/O nor holes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_loop_bypasses_the_cache_and_back_while_in_use(bench: Bench) -> None:
    image = bench.image("a.img")
    up = bring_up(bench, disk(LOOP, image, "cache='none' io='native'"), direct_io=True)
    with bench.stable("vm1", "vda").open("rb"):
        for cache, direct, lacking in (
            ("writeback", False, []),
            ("directsync", True, ["driver/@cache"]),
            ("unsafe", False, ["driver/@cache"]),
            ("none", True, []),
        ):
            text = disk(LOOP, image, f"cache='{cache}'")
            again = bring_up(bench, text, "tune", lacking=lacking, direct_io=direct)
            assert again["diskseq"] == up["diskseq"]


def test_loop_gives_back_what_is_discarded_unless_told_not_to(bench: Bench) -> None:
    image, path = bench.image("a.img"), bench.stable("vm1", "vda")
    up = bring_up(bench, disk(LOOP, image, "discard='unmap'"))
    write(path, b"x" * MIB)
    discard(path, 0, MIB // 2)
    assert allocated(image) <= MIB // 2
    with path.open("rb"):
        ignoring = bring_up(bench, disk(LOOP, image, "discard='ignore'"), "tune")
    assert ignoring["diskseq"] == up["diskseq"]
    write(path, b"x" * MIB)
    with pytest.raises(OSError, match="not supported"):
        discard(path, 0, MIB)
    assert (allocated(image), image.read_bytes()) == (MIB, b"x" * MIB)
    again = bring_up(bench, disk(LOOP, image, ""), "replace")
    assert again["diskseq"] != up["diskseq"]
    discard(path, 0, MIB)
    assert allocated(image) == 0


def test_a_number_that_ignored_discards_does_so_for_nobody_else(bench: Bench) -> None:
    number = bring_up(bench, disk(LOOP, bench.image("a.img"), "discard='ignore'"))["device_path"]
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    limit = Path(f"/sys/block/{Path(number).name}/queue/discard_max_bytes")
    assert not limit.exists() or limit.read_text() != "0\n"


def test_what_loop_can_not_do_is_named(bench: Bench) -> None:
    more = "<iotune><total_iops_sec>9</total_iops_sec><group_name>g</group_name></iotune>"
    settings = "cache='writethrough' io='io_uring' detect_zeroes='on'"
    lacking = ["driver/@cache", "driver/@detect_zeroes", "driver/@io", "iotune/group_name", "iotune/total_iops_sec"]
    bring_up(bench, disk(LOOP, bench.image("a.img"), settings, more), lacking=lacking)


@pytest.mark.parametrize("driver", [LOOP, TAP])
def test_what_the_host_does_not_grant_is_named_and_asked_for_once(bench: Bench, driver: str) -> None:
    with plain_file_system(bench.elsewhere) as folder:
        image = folder / "a.img"
        image.write_bytes(bytes(MIB))
        lacking = ["driver/@cache", "driver/@discard", "driver/@io"]
        text = disk(driver, image, "cache='none' io='native' discard='unmap'")
        up = bring_up(bench, text, lacking=lacking, direct_io=False)
        for restart in (False, True):
            bench.statuses.clear()
            bench.restart() if restart else bench.resync()
            again = bench.until_phase("vm1", "vda", "Up")
            assert (again["diskseq"], again["unhonoured"]) == (up["diskseq"], up["unhonoured"])
        assert "replace" not in steps(bench)
        bench.absent("vm1")
        bench.until_guest("vm1", "Down")


@pytest.mark.parametrize(
    ("cache", "direct", "no_flush", "dirty"),
    [
        ("none", True, False, False),
        ("directsync", True, False, False),
        ("writethrough", False, False, False),
        ("writeback", False, False, True),
        ("unsafe", False, True, True),
    ],
)
def test_a_tap_caches_as_told(bench: Bench, cache: str, direct: bool, no_flush: bool, dirty: bool) -> None:
    image = bench.image("a.img")
    through = cache in {"writethrough", "directsync"}
    granted = not through or flushes_every_write(asyncio.run(version()) or "")
    lacking = [] if granted else ["driver/@cache"]
    bring_up(bench, disk(TAP, image, f"cache='{cache}'"), lacking=lacking, direct_io=direct)
    settings = nodes(bench, "vda")["image"]["cache"]
    assert (settings["direct"], settings["no-flush"]) == (direct, no_flush)
    assert ('"writethrough": true' in command_line(bench)) is (through and granted)
    fd = os.open(bench.stable("vm1", "vda"), os.O_RDWR | os.O_DIRECT)
    try:
        page = mmap.mmap(-1, 4096)  # aligned, as direct I/O wants it
        page[:] = b"x" * len(page)
        os.pwritev(fd, [page], 0)  # no flush follows
        assert dirty_pages(image) in {None, 1 if dirty or not (direct or granted) else 0}
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("settings", "granted", "honoured"),
    [
        ("io='threads'", "threads", True),
        ("io='native' cache='none'", "native", True),
        ("io='native'", "threads", False),
        ("io='io_uring'", "io_uring", True),
        ("", "threads", True),
    ],
)
def test_a_tap_reads_and_writes_the_way_it_is_told(bench: Bench, settings: str, granted: str, honoured: bool) -> None:
    if granted == "io_uring" and not has_io_uring():
        pytest.skip("this kernel, or this container, lets nobody have an io_uring")
    lacking = [] if honoured else ["driver/@io"]
    bring_up(bench, disk(QCOW2, bench.formatted("a.qcow2", "qcow2"), settings), lacking=lacking)
    assert f'"aio": "{granted}"' in command_line(bench)
    write(bench.stable("vm1", "vda"), b"x" * 4096)
    (pid,) = bench.servers()
    assert ("anon_inode:[io_uring]" in open_files(pid)) is (granted == "io_uring")
    assert ("/[aio]" in Path(f"/proc/{pid}/maps").read_text()) is (granted == "native")


def test_a_tap_finds_zeroes_and_unmaps_them(bench: Bench) -> None:
    image, path = bench.image("a.img"), bench.stable("vm1", "vda")
    for settings, kept, step in (
        ("", MIB, "attach"),
        ("detect_zeroes='on'", MIB, "replace"),
        ("detect_zeroes='unmap' discard='ignore'", MIB, "replace"),
        ("detect_zeroes='unmap' discard='unmap'", 0, "replace"),
    ):
        bring_up(bench, disk(TAP, image, settings), step)
        write(path, b"x" * MIB)
        write(path, bytes(MIB))
        assert allocated(image) == kept, settings
    assert nodes(bench, "vda")["format"]["detect_zeroes"] == "unmap"


def test_a_tap_gives_back_what_is_discarded_unless_told_not_to(bench: Bench) -> None:
    image, path = bench.image("a.img"), bench.stable("vm1", "vda")
    for settings, kept, step in (
        ("discard='unmap'", 0, "attach"),
        ("discard='ignore'", MIB, "replace"),
        ("", 0, "replace"),
    ):
        bring_up(bench, disk(TAP, image, settings), step)
        write(path, b"x" * MIB)
        discard(path, 0, MIB)  # a hint: the kernel does not say that the server refuses it
        assert allocated(image) == kept, settings


@pytest.mark.parametrize(
    "settings", ["", "discard='unmap'", "discard='ignore'", "discard='unmap' detect_zeroes='unmap'"]
)
@pytest.mark.parametrize(("fmt", "qemu"), FORMATS)
def test_what_a_guest_zeroes_reads_as_zeroes(bench: Bench, fmt: str, qemu: str, settings: str) -> None:
    """Not so by itself: an older server takes a hole for a discard, which most formats are free to ignore."""
    path = bench.stable("vm1", "vda")
    bench.push("vm1", domain("vm1", disk(f"name='tap2' type='{fmt}'", bench.formatted("image", qemu), settings)))
    up = bench.until_phase("vm1", "vda", "Up")
    assert up["unhonoured"] in ([], ["driver/@discard"] if "discard='unmap'" in settings else [])
    expected = bytearray(os.urandom(2 * MIB))
    write(path, bytes(expected))
    for zero, offset, length in ((punch, 4096, 8192), (punch, 131072, 262144), (zero_out, 524288 + 512, 66048)):
        try:
            zero(path, offset, length)
        except OSError:  # then a guest writes them itself
            write(path, bytes(length), offset)
        expected[offset : offset + length] = bytes(length)
    assert read_past_the_cache(path, len(expected)) == expected


def test_a_tap_keeps_to_its_limits_and_takes_others_while_in_use(bench: Bench) -> None:
    def limited(rate: int) -> str:
        limits = f"<iotune><write_bytes_sec>{rate}</write_bytes_sec><total_iops_sec>5000</total_iops_sec></iotune>"
        return disk(QCOW2, image, "", limits)

    def seconds() -> float:
        start = time.monotonic()
        write(path, os.urandom(2 * MIB))
        return time.monotonic() - start

    image, path = bench.formatted("a.qcow2", "qcow2"), bench.stable("vm1", "vda")
    up = bring_up(bench, limited(MIB // 2))
    slow = seconds()
    with path.open("rb"):
        again = bring_up(bench, limited(100 * MIB), "tune")
        assert again["diskseq"] == up["diskseq"]
        group = ask(bench, "vda", "qom-get", path="/objects/limits", property="limits")
        assert (group["bps-write"], group["iops-total"], group["bps-total"]) == (100 * MIB, 5000, 0)
        assert slow > 1
        bench.until(lambda: seconds() < slow / 2)  # at first there is what the old limit still owes
    bench.restart()
    assert bench.until_phase("vm1", "vda", "Up")["diskseq"] == up["diskseq"]


def test_a_server_that_keeps_to_a_low_limit_does_not_count_as_hung(bench: Bench) -> None:
    limit = "<iotune><write_bytes_sec>65536</write_bytes_sec></iotune>"
    up = bring_up(bench, disk(TAP, bench.image("a.img", 2 * MIB), "", limit))
    write(bench.stable("vm1", "vda"), os.urandom(2 * MIB))  # the second half of it waits for 16 s
    assert bench.until_phase("vm1", "vda", "Up")["diskseq"] == up["diskseq"]
    assert not bench.events("tapster.disk.outage")


def test_limits_come_and_go_under_a_writer(bench: Bench) -> None:
    """Each time behind the same device, whatever is in flight."""

    def in_force() -> Any:
        return ask(bench, "vda", "qom-get", path="/objects/limits", property="limits")["iops-total"]

    image = bench.formatted("a.qcow2", "qcow2")
    up = bring_up(bench, disk(QCOW2, image, ""))
    with writing(bench) as writer:
        for limits, number in (("<total_iops_sec>90</total_iops_sec>", 90), ("", 0)) * 2:
            again = bring_up(bench, disk(QCOW2, image, "", f"<iotune>{limits}</iotune>"), "tune")
            assert (again["diskseq"], in_force()) == (up["diskseq"], number)
            writer.wait_for_more(bench)
    bench.restart()
    assert bench.until_phase("vm1", "vda", "Up")["diskseq"] == up["diskseq"]
    bench.absent("vm1")
    bench.until_guest("vm1", "Down")
    holds(image, "qcow2", writer.done)


def test_a_burst_and_its_length_are_taken_back_while_in_use(bench: Bench) -> None:
    image = bench.image("a.img")
    rate, peak = "<total_iops_sec>5000</total_iops_sec>", "<total_iops_sec_max>9000</total_iops_sec_max>"
    length = "<total_iops_sec_max_length>60</total_iops_sec_max_length>"
    up = bring_up(bench, disk(TAP, image, "", f"<iotune>{rate}{peak}{length}</iotune>"))
    for limits in (rate + peak, rate + peak + length, ""):
        again = bring_up(bench, disk(TAP, image, "", f"<iotune>{limits}</iotune>"), "tune")
        group = ask(bench, "vda", "qom-get", path="/objects/limits", property="limits")
        assert group["iops-total-max-length"] == (60 if length in limits else 1)
        assert again["diskseq"] == up["diskseq"]


def test_a_tap_of_an_earlier_version_is_replaced_for_its_first_limit(bench: Bench) -> None:
    """It has no node for them; such records say nothing of one."""
    image = bench.image("a.img")
    bring_up(bench, disk(TAP, image, ""))
    bench.stop()
    (record,) = bench.runtime.glob("taps/*/tap.json")
    record.write_text(record.read_text().replace('"throttled":true', '"throttled":false'))
    bench.start()
    limit = "<iotune><total_iops_sec>90</total_iops_sec></iotune>"
    bring_up(bench, disk(TAP, image, "", limit), "replace")
    bring_up(bench, disk(TAP, image, ""), "tune")


def test_a_change_waits_until_nobody_uses_the_disk(bench: Bench) -> None:
    image, path = bench.image("a.img"), bench.stable("vm1", "vda")
    bring_up(bench, disk(TAP, image, ""))
    with path.open("rb"):
        bench.push("vm1", domain("vm1", disk(TAP, image, "cache='unsafe'")))
        waiting = bench.until_phase("vm1", "vda", "InUse")
        assert waiting["unhonoured"] == ["driver/@cache"]
    bench.until_status("vm1", "vda", phase="Up", unhonoured=[])
    assert nodes(bench, "vda")["image"]["cache"]["no-flush"] is True
