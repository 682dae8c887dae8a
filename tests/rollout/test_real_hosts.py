"""Rollouts over real agents: each with its own runtime folder on this kernel, real images and real loop devices."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.app import app
from tests.broker import Broker
from tests.cli_operator.test_targets import XML
from tests.rollout.test_drivers import driver
from tests.workbench import FLEET, Bench, bench

SITES = ("ams", "ams", "fra", "fra")


class Lab:
    """Four hosts that share a folder of images, and an operator."""

    def __init__(self, hosts: list[Bench], images: Path, folder: Path) -> None:
        self.hosts = hosts
        self.images = images
        self.folder = folder
        (folder / "tapster.toml").write_text(f'fleet = "{FLEET}"\nbroker.port = {hosts[0].broker.port}\n')

    def image(self, host: Bench, name: str) -> Path:
        path = self.images / f"{host.host}-{name}.raw"
        with path.open("wb") as file:
            file.truncate(1 << 20)
        return path

    def definition(self, name: str) -> Path:
        """A template for the images of that name."""
        path = self.folder / f"{name}.xml"
        path.write_text(XML.format(f"{self.images}/{{host}}-{name}.raw"))
        return path

    def tapster(self, *words: str | Path) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [*map(str, words), "--config", f"{self.folder}/tapster.toml"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    def backing(self, host: Bench) -> list[str]:
        """The images that the host's loop devices really have, whatever anybody says."""
        files = [Path(f"/sys/block/loop{device.minor}/loop/backing_file").read_text() for device in host.loops()]
        return [Path(file.strip()).name.removeprefix(f"{host.host}-") for file in files]


@pytest.fixture
def lab(host_parts: None, broker: Broker, tmp_path: Path) -> Iterator[Lab]:
    images = tmp_path / "images"
    images.mkdir()
    os.chmod(tmp_path, 0o755)  # noqa: PTH101
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(bench(f'[labels]\nsite = "{site}"\n[images]\npools = ["{images}"]', broker=broker))
            for site in SITES
        ]
        yield Lab(hosts, images, tmp_path)
        for host in hosts:
            host.push("vm1", json.dumps({"guest": "vm1", "generation": 10**6, "state": "absent"}))
            host.until_guest("vm1", "Down")
            host.assert_clean()


def ours(lab: Lab) -> list[str]:
    """The options that name exactly the lab's hosts, on a broker that others may have been on."""
    return [word for host in lab.hosts for word in ("--host", host.host)]


def test_plan_roll_out_undo_and_roll_back(lab: Lab) -> None:
    for host in lab.hosts:
        lab.image(host, "old")
        lab.image(host, "new")
    old, new = lab.definition("old"), lab.definition("new")
    code, out, err = lab.tapster("plan", old, *ours(lab), "--template")
    assert code == 0, err
    assert out.splitlines()[-1] == "4 of 4 hosts answered: attach 4"
    code, out, err = lab.tapster("rollout", old, *ours(lab), "--template", "--wave", "50%")
    assert code == 0, err
    assert "done: 4 of 4 hosts done" in out
    assert [lab.backing(host) for host in lab.hosts] == [["old.raw"]] * 4
    assert lab.tapster("plan", new, *ours(lab), "--template")[1].splitlines()[-1] == (
        "4 of 4 hosts answered: replace 4"
    )
    assert lab.tapster("diff", new, *ours(lab), "--template")[0] == 1
    code, out, _ = lab.tapster("rollout", new, *ours(lab), "--template", "--wave", "1", "-o", "json")
    assert code == 0
    assert [lab.backing(host) for host in lab.hosts] == [["new.raw"]] * 4
    code, out, err = lab.tapster("rollout", "undo", json.loads(out)["id"])
    assert code == 0, err
    assert "4 of 4 hosts as before" in out
    assert [lab.backing(host) for host in lab.hosts] == [["old.raw"]] * 4


def test_what_one_host_lacks_stops_it_and_all_go_back(lab: Lab) -> None:
    for host in lab.hosts:
        lab.image(host, "old")
    in_order = sorted(lab.hosts, key=lambda host: host.host)
    for host in in_order[:2]:
        lab.image(host, "new")
    old, new = lab.definition("old"), lab.definition("new")
    assert lab.tapster("push", old, *ours(lab), "--template", "--wait")[0] == 0
    code, out, _ = lab.tapster("plan", new, *ours(lab), "--template")
    assert code == 1
    assert "4 of 4 hosts answered: replace 2, refused 2" in out
    code, _, err = lab.tapster("rollout", new, *ours(lab), "--template", "--wave", "1", "--rollback")
    assert code == 1
    assert f"{in_order[2].host} failed, 1 in all, and 0 of 4 hosts may" in err
    assert "ImageMissing" in err
    assert "rolled-back: 3 of 3 hosts as before" in err
    assert [lab.backing(host) for host in lab.hosts] == [["old.raw"]] * 4
    code, out, _ = lab.tapster("rollout", new, *ours(lab), "--template", "--canary", "3")
    assert code == 1, "the canary forgives nothing"


def test_a_host_that_is_away_in_its_wave_does_it_when_another_process_goes_on(lab: Lab) -> None:
    for host in lab.hosts:
        lab.image(host, "new")
    in_order = sorted(lab.hosts, key=lambda host: host.host)
    in_order[1].send(signal.SIGSTOP)
    with driver(lab.folder, lab.definition("new"), *ours(lab), "--template", "--wave", "1") as first:
        in_order[0].until(lambda: first.said("wave 2/4 begins"))
        in_order[0].until_phase("vm1", "vda", "Up")
        assert first.end() == 1
    assert [lab.backing(host) for host in in_order] == [["new.raw"], [], [], []]
    in_order[1].send(signal.SIGCONT)
    rollout = json.loads(lab.tapster("rollout", "history", "-o", "json")[1])[-1]
    assert rollout["phase"] == "rolling"
    code, out, err = lab.tapster("rollout", "resume", rollout["id"])
    assert code == 0, err
    assert "done: 4 of 4 hosts done" in out
    assert [lab.backing(host) for host in lab.hosts] == [["new.raw"]] * 4
