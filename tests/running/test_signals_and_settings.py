"""Signals, settings and folders: what is wrong is said, and no disk is touched by any of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workbench import PATIENCE, Bench, loop_disk


def run_agent(config: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the agent to its end, which is expected to come at once."""
    command = [sys.executable, "-c", "from agent.cli.app import main; main()", "run", "--config", str(config)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=PATIENCE, env=os.environ | environment
    )


def changed_config(bench: Bench, old: str, new: str) -> Path:
    config = bench.folder / "other.toml"
    text = bench.config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    return config


def test_sighup_takes_new_settings_and_wrong_ones_change_nothing(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    before = bench.until_phase("vm1", "vda", "Up")
    text = bench.config.read_text()
    bench.config.write_text(text.replace("[broker]", '[labels]\nrack = "12"\n[broker]'))
    with bench.stable("vm1", "vda").open("rb"):
        bench.send(signal.SIGHUP)
        bench.until(lambda: bench.births()[-1]["state"] == "online" and bench.births()[-1]["labels"] == {"rack": "12"})
        sessions = {birth["session"] for birth in bench.births()}
        bench.config.write_text(text.replace("[broker]", "colour = 1\n[broker]"))
        bench.send(signal.SIGHUP)
        bench.until(lambda: any("colour" in line.get("why", "") for line in bench.log_lines() if line.get("why")))
        wrong = next(line for line in bench.log_lines() if "colour" in (line.get("why") or ""))
        assert "the old ones stay in force" in wrong["event"]
        bench.config.unlink()
        bench.send(signal.SIGHUP)
        bench.until(lambda: any("no such file" in (line.get("why") or "") for line in bench.log_lines()))
    bench.statuses.clear()
    bench.resync()
    assert bench.until_phase("vm1", "vda", "Up")["diskseq"] == before["diskseq"]
    assert {birth["session"] for birth in bench.births()} == sessions
    assert bench.births()[-1]["labels"] == {"rack": "12"}
    bench.config.write_text(text)


def test_a_storm_of_signals_leaves_a_working_agent(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    before = bench.until_phase("vm1", "vda", "Up")
    for _ in range(20):
        bench.send(signal.SIGHUP)
    bench.until(lambda: bench.births()[-1]["state"] == "online" and len({b["session"] for b in bench.births()}) > 1)
    bench.statuses.clear()
    bench.resync()
    assert bench.until_phase("vm1", "vda", "Up")["diskseq"] == before["diskseq"]
    assert bench.stop(signal.SIGINT) == 0
    assert len(bench.loops()) == 1


def test_a_second_agent_is_turned_away(bench: Bench) -> None:
    again = run_agent(bench.config)
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
    assert "end the other one" in again.stderr
    apart = run_agent(changed_config(bench, f"{bench.folder}/state", f"{bench.folder}/other-state"))
    assert apart.returncode == 1
    assert f"another agent runs on {bench.runtime}" in apart.stderr
    assert "Traceback" not in apart.stderr
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    bench.until_phase("vm1", "vda", "Up")


WRONG = [
    ("[broker]", 'colour = "red"\n[broker]', "colour"),
    ("[broker]", "[broker]\nprot = 1", "broker.prot"),
    ("reconnect_min = 0.1", "reconnect_min = 9", "reconnect_min"),
    ("[broker]\nport = ", '[broker]\nport = "many" #', "broker.port"),
    ("[paths]", "[paths", "TOML"),
    ('host = "', 'host = "UPPER ', "host"),
]


@pytest.mark.parametrize(("old", "new", "named"), WRONG)
def test_wrong_settings_are_named_and_exit_2(host: Bench, old: str, new: str, named: str) -> None:
    ended = run_agent(changed_config(host, old, new))
    assert ended.returncode == 2
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_variable_is_named(host: Bench) -> None:
    ended = run_agent(host.config, TAPSTER_BROKER__PROT="1")
    assert (ended.returncode, "TAPSTER_BROKER__PROT" in ended.stderr) == (2, True)


@pytest.mark.parametrize("place", ["state", "runtime"])
@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null/below"])
def test_folders_that_cannot_be_written_are_named(host: Bench, place: str, folder: str) -> None:
    old = {"state": f"{host.folder}/state", "runtime": str(host.runtime)}[place]
    config = changed_config(host, f'"{old}"', f'"{folder}"')
    if place == "runtime":
        config.write_text(config.read_text().replace(f"{host.folder}/state", f"{host.folder}/state-of-its-own"))
    ended = run_agent(config)
    assert ended.returncode == 1
    assert folder.split("/")[1] in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_damaged_store_is_named_and_left_as_it_is_and_disks_stay_up(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    bench.until_phase("vm1", "vda", "Up")
    bench.stop()
    store = bench.folder / "state" / "store.sqlite"
    good = store.read_bytes()
    damaged = good[:100] + b"\xff" * 4000 + good[4100:]
    store.write_bytes(damaged)
    ended = run_agent(bench.config)
    assert ended.returncode == 1
    assert str(store) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert store.read_bytes() == damaged
    assert len(bench.loops()) == 1
    assert bench.stable("vm1", "vda").is_block_device()
    store.write_bytes(good)
    bench.statuses.clear()
    bench.start()
    bench.until_phase("vm1", "vda", "Up")


def test_a_lost_store_deletes_nothing(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    before = bench.until_phase("vm1", "vda", "Up")
    bench.stop()
    for file in (bench.folder / "state").iterdir():
        file.unlink()
    bench.push("vm1", b"")
    bench.statuses.clear()
    bench.start()
    orphan = bench.until_guest("vm1", "Orphaned")
    assert orphan["disks"][0]["diskseq"] == before["diskseq"]
    assert bench.stable("vm1", "vda").is_block_device()
    bench.push_disks("vm1", loop_disk("vda", bench.images / "a.img"))
    assert bench.until_phase("vm1", "vda", "Up")["diskseq"] == before["diskseq"]
