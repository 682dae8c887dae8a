"""The host runs out of something: what is up stays, the status says what is lacking, and all recovers by itself."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.app import app
from tests.broker import Broker
from tests.faults.harm import (
    agent_pid,
    fill,
    free,
    host_condition,
    launcher_pid,
    little_memory,
    memory_cgroup,
    no_free_descriptor,
    small_disk,
    use_up_memory,
)
from tests.workbench import Bench, domain, loop_disk, tap_disk
from tests.workbench import bench as running_bench

SERVER = "qemu-storage-daemon"


def two_disks(bench: Bench, name: str) -> list[str]:
    return [loop_disk("vda", bench.image(f"{name}1.img")), tap_disk("vdb", bench.image(f"{name}2.img"))]


def identities(bench: Bench, guest: str) -> list[tuple[str, int]]:
    return [(disk["device_path"], disk["diskseq"]) for disk in bench.statuses[guest]["disks"]]


def until_failed(bench: Bench, guest: str, words: str) -> None:
    """Wait until every disk of a guest says that it is not up, and why in these words."""

    def failed() -> bool:
        errors = [disk["error"] for disk in bench.statuses.get(guest, {}).get("disks", [])]
        return bool(errors) and all(error and words in error["message"] for error in errors)

    bench.until(failed)
    reasons = {disk["error"]["reason"] for disk in bench.statuses[guest]["disks"]}
    assert "InternalError" not in reasons


def told_of(kind: str, bench: Bench) -> list[str]:
    """The answers of a condition of the host, as events have told of them."""
    changes = [event["data"]["condition"] for event in bench.events("tapster.host.condition")]
    return [change["reason"] for change in changes if change["type"] == kind]


def test_without_a_free_descriptor_disks_say_so_and_come_up_when_there_are_some(bench: Bench) -> None:
    bench.push_disks("vm1", *two_disks(bench, "a"))
    bench.until_guest("vm1", "Up")
    before = identities(bench, "vm1")
    with no_free_descriptor(agent_pid(bench)):
        bench.push_disks("vm2", *two_disks(bench, "b"))
        until_failed(bench, "vm2", "Too many open files")
        bench.resync()
        bench.push_disks("vm1", *two_disks(bench, "a"))
    bench.until_guest("vm2", "Up")
    bench.resync()
    bench.until(lambda: bench.statuses["vm1"]["phase"] == "Up" and identities(bench, "vm1") == before)
    assert bench.running


def test_a_full_runtime_folder_is_told_and_disks_come_up_when_there_is_room(bench: Bench) -> None:
    bench.stop()
    with small_disk(bench.runtime, "size=1m", "nr_inodes=200"):
        bench.start()
        bench.wait_synced()
        bench.push_disks("vm1", *two_disks(bench, "a"))
        bench.until_guest("vm1", "Up")
        before = identities(bench, "vm1")
        ballast = fill(bench.runtime)
        bench.push_disks("vm2", *two_disks(bench, "b"))
        until_failed(bench, "vm2", "No space left on device")
        bench.resync()
        free(ballast)
        bench.until_guest("vm2", "Up")
        assert bench.statuses["vm1"]["phase"] == "Up"
        assert identities(bench, "vm1") == before
        for guest in ("vm1", "vm2"):
            bench.absent(guest)
            bench.until_guest(guest, "Down")
        bench.assert_clean()
        bench.stop()


def test_a_full_state_folder_is_told_and_no_document_is_lost(bench: Bench) -> None:
    bench.stop()
    shutil.rmtree(bench.folder / "state")
    with small_disk(bench.folder / "state", "size=1m"):
        bench.start()
        bench.wait_synced()
        bench.push_disks("vm1", *two_disks(bench, "a"))
        bench.until_guest("vm1", "Up")
        before = identities(bench, "vm1")
        ballast = fill(bench.folder / "state")
        bench.push("vm2", domain("vm2", *two_disks(bench, "b"), f"<!--{'x' * 100_000}-->"))
        bench.until(lambda: host_condition(bench, "Stored").get("reason") == "StoreFailed")
        assert "vm2" not in bench.statuses
        assert identities(bench, "vm1") == before
        free(ballast)
        bench.until_guest("vm2", "Up")
        bench.until(lambda: host_condition(bench, "Stored").get("status") == "True")
        # Documents that are on record come again with each attempt, and nothing fails at that.
        bench.until(lambda: told_of("Stored", bench)[-1:] == ["AsDesired"])
        assert told_of("Stored", bench)[0] == "StoreFailed"
        bench.restart()
        bench.until_guest("vm2", "Up")
        assert identities(bench, "vm1") == before
        bench.stop()


@contextmanager
def host_with_programs(folder: Path, *programs: str, settings: str = "", broker: Broker) -> Iterator[Bench]:
    """A host whose agent finds these programs in `folder`, and nothing anywhere else."""
    for program in programs:
        found = shutil.which(program)
        assert found is not None
        (folder / program).symlink_to(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder))
        with running_bench(settings, broker=broker) as host:
            patch.undo()
            yield host


@pytest.fixture
def own_path(host_parts: None, broker: Broker, tmp_path: Path) -> Iterator[Bench]:
    """A host whose agent finds its server in `tmp_path`, with what a jail is made by."""
    with host_with_programs(tmp_path, SERVER, "ldd", broker=broker) as host:
        yield host


@pytest.mark.parametrize("resync", [1, 3600], ids=["in time", "when told to look"])
def test_a_server_that_is_installed_later_is_found(
    host_parts: None, broker: Broker, tmp_path: Path, resync: int
) -> None:
    settings = f"[controller]\nresync = {resync}\nretry_min = 0.05\nretry_max = 0.3"
    server = shutil.which(SERVER)
    assert server is not None
    with host_with_programs(tmp_path, "ldd", settings=settings, broker=broker) as bench:
        bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
        until_failed(bench, "vm1", "is not installed")
        assert bench.disk("vm1", "vda")["error"]["reason"] == "BackendUnavailable"
        assert "blktap" not in bench.births()[-1]["capabilities"]["backends"]
        (tmp_path / SERVER).symlink_to(server)
        if resync > 1:
            told = CliRunner().invoke(app, ["resync", "--host", bench.host, "--config", str(bench.config)])
            assert (told.exit_code, told.stdout) == (0, f"{bench.host}: looks anew\n"), told.stderr
        bench.until_guest("vm1", "Up")
        bench.until(lambda: bench.births()[-1]["capabilities"]["servers"].keys() == {"storage-daemon"})
        assert bench.births()[-1]["state"] == "online"


@pytest.mark.parametrize(
    ("program", "words"), [(None, "is not installed"), ("/bin/false", "did not start")], ids=["no program", "failing"]
)
def test_a_server_that_cannot_start_is_told_and_the_disk_comes_up_when_it_can(
    own_path: Bench, tmp_path: Path, program: str | None, words: str
) -> None:
    bench = own_path
    bench.push_disks("vm1", tap_disk("vda", bench.image("a.img")))
    bench.until_guest("vm1", "Up")
    before = identities(bench, "vm1")
    server = (tmp_path / SERVER).readlink()
    (tmp_path / SERVER).unlink()
    if program is not None:
        (tmp_path / SERVER).symlink_to(program)
    bench.push_disks("vm2", tap_disk("vda", bench.image("b.img")))
    bench.push_disks("vm3", loop_disk("vda", bench.image("c.img")))
    until_failed(bench, "vm2", words)
    assert bench.disk("vm2", "vda")["error"]["reason"] == "ServerFailed"
    bench.until_guest("vm3", "Up")
    (tmp_path / SERVER).unlink(missing_ok=True)
    (tmp_path / SERVER).symlink_to(server)
    bench.until_guest("vm2", "Up")
    assert identities(bench, "vm1") == before


def test_a_server_that_gets_no_memory_is_told_and_the_disk_comes_up_when_there_is_some(bench: Bench) -> None:
    bench.push_disks("vm1", *two_disks(bench, "a"))
    bench.until_guest("vm1", "Up")
    before = identities(bench, "vm1")
    with little_memory(launcher_pid(bench), 12 << 20):
        bench.push_disks("vm2", tap_disk("vda", bench.image("b.img")))
        bench.push_disks("vm3", loop_disk("vda", bench.image("c.img")))
        until_failed(bench, "vm2", "did not start: qemu")
        assert bench.disk("vm2", "vda")["error"]["reason"] == "ServerFailed"
        bench.until_guest("vm3", "Up")
    bench.until_guest("vm2", "Up")
    assert identities(bench, "vm1") == before


def test_a_server_that_the_kernel_kills_for_memory_is_replaced(bench: Bench) -> None:
    bench.push_disks("vm1", *two_disks(bench, "a"))
    bench.until_guest("vm1", "Up")
    loop, tap = identities(bench, "vm1")
    [server] = bench.servers()
    with memory_cgroup(limit=32 << 20) as group:
        use_up_memory(group, server)
        bench.until(lambda: server not in bench.servers())
        bench.until(lambda: bench.disk("vm1", "vdb")["diskseq"] not in {None, tap[1]})
        bench.until_guest("vm1", "Up")
    assert identities(bench, "vm1")[0] == loop
    assert bench.disk("vm1", "vdb")["last_outage"]["reason"] == "ServerLost"
    assert bench.running
