"""Disks that no document names: shown, never touched, and taken down only by an operator who was asked."""

import shutil
import subprocess
import sys

from tests.workbench import Bench, loop_disk, tap_disk


def gc(bench: Bench, *words: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    script = "from agent.cli.app import main; main()"
    command = [sys.executable, "-c", script, "gc", "--config", str(bench.config), *words]
    return subprocess.run(command, input=answer, capture_output=True, text=True, check=False)


def lose_every_document(bench: Bench, *guests: str) -> None:
    bench.stop()
    for guest in guests:
        bench.push(guest, b"")
    shutil.rmtree(bench.folder / "state")
    bench.start()
    bench.wait_synced()


def test_a_lost_store_and_an_empty_broker_take_no_disk_down(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")), tap_disk("vdb", bench.image("b.img")))
    before = bench.until_guest("vm1", "Up")
    lose_every_document(bench, "vm1")
    bench.until_guest("vm1", "Orphaned")
    bench.until(lambda: len(bench.statuses["vm1"]["disks"]) == len(before["disks"]))  # one is reported before the other
    after = bench.statuses["vm1"]
    assert [disk["diskseq"] for disk in after["disks"]] == [disk["diskseq"] for disk in before["disks"]]
    assert {disk["error"]["reason"] for disk in after["disks"]} == {"UnknownGuest"}
    bench.push_disks("vm1", loop_disk("vda", bench.images / "a.img"), tap_disk("vdb", bench.images / "b.img"))
    again = bench.until_guest("vm1", "Up")
    assert [disk["diskseq"] for disk in again["disks"]] == [disk["diskseq"] for disk in before["disks"]]


def test_gc_shows_and_asks_before_it_takes_down(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")), tap_disk("vdb", bench.image("b.img")))
    bench.push_disks("vm2", loop_disk("vda", bench.image("c.img")))
    bench.until_guest("vm1", "Up")
    bench.until_guest("vm2", "Up")
    lose_every_document(bench, "vm1")
    bench.until_guest("vm1", "Orphaned")
    refused = gc(bench, answer="n\n")
    assert refused.returncode == 1
    assert "vdb" in refused.stdout
    assert len(bench.loops()) == 3
    agreed = gc(bench, answer="y\n")
    assert agreed.returncode == 0, agreed.stderr
    assert len(bench.loops()) == 1
    assert gc(bench).returncode == 0
    assert (bench.images / "a.img").exists()
