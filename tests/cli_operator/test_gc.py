"""`tapster gc`: what it says of a host, to people and to programs."""

import json
from pathlib import Path

import pytest

from agent.bus.topics import Topics
from agent.settings import Settings
from agent.status import Phase
from reconcilers.reason import Reason
from tests.cli_operator.fake_host import Fake, Put, birth, disk, failing, fake_fleet, guest, up
from tests.cli_operator.test_targets import Tapster


@pytest.fixture
def tapster(settings: Settings, tmp_path: Path) -> Tapster:
    return Tapster(settings, tmp_path)


@pytest.mark.parametrize(("host", "why"), [("Bad Host", "can't be a topic level"), ("typo", "has never been in fleet")])
def test_a_host_that_never_was_is_not_called_clean(tapster: Tapster, put: Put, host: str, why: str) -> None:
    put(Topics("lab", "h1").agent, birth())
    code, _, err = tapster("gc", "--host", host)
    assert code == 1
    assert err.startswith("tapster gc: ")
    assert why in err
    assert tapster("gc", "--host", "h1")[0] == 0


@pytest.mark.parametrize(("fake", "code"), [(Fake(up), 0), (Fake(failing(Reason.KERNEL_ERROR)), 1)])
def test_a_program_gets_json_alone_and_messages_are_gc_s(
    settings: Settings, tapster: Tapster, put: Put, fake: Fake, code: int
) -> None:
    with fake_fleet(settings, {"h1": fake}):
        orphan = guest(disk("vda", Phase.ORPHANED), host="h1")
        put(Topics("lab", "h1").status("vm1"), orphan.model_dump_json().encode())
        done, out, err = tapster("gc", "--host", "h1", "--yes", "-o", "json", "--timeout", "20")
    assert [one["guest"] for one in json.loads(out)] == ["vm1"]
    assert done == code
    assert "vm1 absent, generation 2: " in err
    assert "tapster absent" not in err
