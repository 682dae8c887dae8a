"""Alert rules and dashboard: what they ask for is what the agent tells, and Prometheus' own tool accepts them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from agent.metrics.counts import Counts
from agent.metrics.snapshot import Snapshot, SnapshotCollector, build_info
from agent.status import Phase

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"


def told() -> set[str]:
    """Every name that a query may use."""
    registry = CollectorRegistry()
    Counts(registry)
    nothing = Snapshot(disks={}, io={}, queued=0, working=0, unsent=0, dropped=0, connected=True, guests=0)
    registry.register(SnapshotCollector(nothing))
    registry.register(build_info("0"))
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    return {family.name + end for family in registry.collect() for end in suffixes[family.type]}


def expressions() -> list[str]:
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    return alerts + [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_name_in_a_query_is_one_that_the_agent_tells() -> None:
    asked = {name for text in expressions() for name in re.findall(r"\btapster_\w+", text)}
    assert asked - told() == set()
    assert len(asked) > 10


def test_every_phase_in_a_query_is_one() -> None:
    words = {
        word
        for text in expressions()
        for found in re.findall(r'phase[!=~]+"([^"]*)"', text)
        for word in found.split("|")
    }
    assert words - set(Phase) == set()


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_panels_do_not_lie_over_each_other() -> None:
    taken = set[tuple[int, int]]()
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")
@pytest.mark.parametrize(
    "command",
    [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml"), ("check", "config", "prometheus.yml")],
)
def test_promtool_accepts_them(command: tuple[str, ...]) -> None:
    checked = subprocess.run(["promtool", *command], check=False, cwd=FOLDER, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
