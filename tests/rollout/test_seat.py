"""The driver's seat on a bad network: who comes back, who takes over, and what the former driver still publishes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.rollout.drive import PART
from agent.rollout.record import Phase, RolloutDriver
from agent.settings import Settings
from agent.status import GuestStatus
from tests.cli_operator.fake_host import Fake, Put, fake_fleet, up
from tests.cli_operator.test_targets import Tapster
from tests.rollout.line import Line, line
from tests.rollout.test_drivers import PATIENCE, Driver, Gate, driver, gated, records, the_only
from tests.rollout.test_rollout import images, rollout, told
from tests.waiting import until


@pytest.fixture
def far(settings: Settings) -> Iterator[Line]:
    with line(settings.broker) as one:
        yield one


@pytest.fixture
def there(settings: Settings, far: Line, tmp_path: Path) -> Path:
    """Where a driver runs that has the far line to the broker."""
    folder = tmp_path / "there"
    folder.mkdir()
    near = settings.broker.model_copy(update={"port": far.port})
    Tapster(settings.model_copy(update={"broker": near}), folder)
    return folder


def taken_down(document: Any, sha256: str) -> GuestStatus | None:
    """Answers only once the guest is to be absent."""
    return up(document, sha256) if document["state"] == "absent" else None


def cut_off(far: Line, first: Driver, settings: Settings) -> str:
    """A driver in its second wave loses the network, and the broker notices; returns the rollout."""
    until(lambda: first.said("wave 2/3 begins") and len(told(settings)) == 2)
    far.cut()
    until(lambda: first.said("trying again") and not the_only(settings).driven)
    return the_only(settings).id


@pytest.mark.parametrize(
    ("words", "phase"), [(("abort",), "aborted"), (("abort", "--rollback"), "rolled-back"), (("undo",), "rolled-back")]
)
def test_who_comes_back_does_not_go_on_with_what_was_ended_meanwhile(
    settings: Settings, tapster: Tapster, file: Path, far: Line, there: Path, *, words: tuple[str, ...], phase: str
) -> None:
    hosts = {"h1": Fake(up), "h2": Fake(taken_down), "h3": Fake(up)}
    with fake_fleet(settings, hosts), driver(there, file, "--all") as first:
        name = cut_off(far, first, settings)
        assert tapster("rollout", words[0], name, *words[1:])[0] == 0
        far.mend()
        assert first.process.wait(PATIENCE) == 1
        assert first.said(f"rollout {name}: .* has brought it to {phase} .* while the broker was away from here")
        assert first.said(f"see `tapster rollout status {name}`")
        state = the_only(settings).state
        assert state
        assert state.phase == phase
        assert "h3" not in told(settings)


def test_who_comes_back_leaves_the_seat_to_who_has_it(
    settings: Settings, file: Path, far: Line, there: Path, tmp_path: Path
) -> None:
    with fake_fleet(settings, gated(3, Gate())), driver(there, file, "--all") as first:
        name = cut_off(far, first, settings)
        with driver(tmp_path, "resume", name) as second:
            until(lambda: second.said("wave 2/3 begins") and the_only(settings).driven)
            mine = the_only(settings).driver
            far.mend()
            assert first.process.wait(PATIENCE) == 1
            assert first.said(f"or agree with them and `tapster rollout resume {name} --take-over`")
            assert second.process.poll() is None
            assert the_only(settings).driver == mine
            assert second.end() == 1


@pytest.mark.parametrize("late_will", [False, True])
def test_who_comes_back_does_not_go_on_where_somebody_else_has_driven(  # noqa: PLR0917 - fixtures
    settings: Settings, file: Path, far: Line, there: Path, tmp_path: Path, put: Put, *, late_will: bool
) -> None:
    with fake_fleet(settings, gated(3, Gate())), driver(there, file, "--all") as first:
        name = cut_off(far, first, settings)
        will = the_only(settings).driver
        assert will
        with driver(tmp_path, "resume", name) as second:
            until(lambda: second.said("wave 2/3 begins") and the_only(settings).driven)
            second.end()
        if late_will:  # as of a broker that noticed only now
            put(f"tapster/v1/lab/rollouts/{name}/driver", will.model_dump_json().encode())
        far.mend()
        assert first.process.wait(PATIENCE) == 1
        assert first.said(f"go on with `tapster rollout resume {name}`")
        assert not the_only(settings).driven


def test_who_comes_back_to_its_own_seat_goes_on(settings: Settings, file: Path, far: Line, there: Path) -> None:
    with fake_fleet(settings, gated(3, Gate())), driver(there, file, "--all") as first:
        cut_off(far, first, settings)
        far.mend()
        until(lambda: the_only(settings).driven)
        with fake_fleet(settings, {"h2": Fake(up)}):
            until(lambda: "h3" in told(settings))
        assert first.process.poll() is None


def test_who_may_not_drive_leaves_nothing_in_the_seat(settings: Settings, tapster: Tapster, file: Path) -> None:
    with fake_fleet(settings, gated(2, Gate(), first=2)):
        _, shown, _ = rollout(tapster, file, "--all")
        before = the_only(settings).driver
        assert "nothing to go on with" in tapster("rollout", "resume", shown["id"])[2]
        assert the_only(settings).driver == before


@pytest.mark.parametrize(
    "words", [("abort", "--rollback"), ("undo", "--take-over"), ("resume", "--take-over")], ids=lambda words: words[0]
)
def test_who_takes_over_knows_what_was_published_until_then(  # noqa: PLR0917 - fixtures
    settings: Settings, tapster: Tapster, file: Path, far: Line, there: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    hosts = {"h1": Fake(up), "h2": Fake(taken_down), "h3": Fake(taken_down), "h4": Fake(up)}
    far.hold_at = b'"driving":true'
    with fake_fleet(settings, hosts), driver(tmp_path, file, "--all") as first:
        until(lambda: first.said("wave 2/4 begins") and len(told(settings)) == 2)
        name = the_only(settings).id
        with driver(there, words[0], name, *words[1:]) as second:
            assert far.held.wait(PATIENCE)  # it has seen that it may, and is about to sit down
            with fake_fleet(settings, {"h2": Fake(up)}):
                until(lambda: first.said("wave 3/4 begins") and len(told(settings)) == 3)
            far.release()
            assert first.process.wait(PATIENCE) == 1
            assert first.said("drives it now, and nothing more is published from here")
            if words[0] == "resume":
                with fake_fleet(settings, {"h3": Fake(up)}):
                    assert second.process.wait(PATIENCE) == 0
                assert tapster("rollout", "undo", name)[0] == 0
            else:
                assert second.process.wait(PATIENCE) == 0
    assert set(images(settings).values()) == {"absent"}


def test_who_was_taken_over_begins_no_further_wave(  # noqa: PLR0917 - fixtures
    settings: Settings, tapster: Tapster, file: Path, far: Line, there: Path, tmp_path: Path
) -> None:
    far.hold_at = b"wave 2 of 3 begins"
    with fake_fleet(settings, gated(3, Gate())), driver(there, file, "--all") as first:
        assert far.held.wait(PATIENCE), first.log.read_text()
        before = the_only(settings)
        with driver(tmp_path, "abort", before.id) as second:
            until(lambda: the_only(settings).driver != before.driver)
            far.release()
            assert second.process.wait(PATIENCE) == 0
        assert first.process.wait(PATIENCE) == 1
        assert first.said("drives it now")
        record = the_only(settings)
        assert record.state
        assert (record.state.phase, record.waves[2].prepared) == ("aborted", False)
        assert told(settings).keys() == {"h1"}


def test_who_was_taken_over_stops_in_the_middle_of_a_wave(
    settings: Settings, file: Path, far: Line, there: Path, tmp_path: Path
) -> None:
    count = 2 * PART + 1
    far.hold_at = b"hosts/h1/desired/guests/vm1"
    with (
        fake_fleet(settings, gated(count, Gate())),
        driver(there, file, "--all", "--canary", "0", "--wave", "100%") as first,
    ):
        assert far.held.wait(PATIENCE), first.log.read_text()
        before = the_only(settings)
        with driver(tmp_path, "abort", before.id, "--rollback") as second:
            until(lambda: the_only(settings).driver != before.driver)
            far.release()
            assert first.process.wait(PATIENCE) == 1
            assert first.said("drives it now")
            until(lambda: second.said("restoring"))
            until(lambda: sum(one["state"] == "absent" for one in told(settings).values()) == PART)
        assert len(told(settings)) == PART


def test_a_rollout_that_was_half_forgotten_can_be_forgotten(
    settings: Settings, tapster: Tapster, file: Path, put: Put
) -> None:
    with fake_fleet(settings, gated(2, Gate(), first=2)):
        _, shown, _ = rollout(tapster, file, "--all")
    name, record = shown["id"], the_only(settings)
    assert record.state
    assert record.driver
    claiming = record.state.model_copy(update={"phase": Phase.CLAIMING})
    there = RolloutDriver(operator="somebody@there", session="theirs", driving=True)
    kept = f"tapster/v1/lab/rollouts/{name}"
    put(f"{kept}/state", claiming.model_dump_json().encode())
    assert "end it with" in tapster("rollout", "forget", name)[2], "it is whole"
    put(f"{kept}/waves/2", b"")
    put(f"{kept}/driver", there.model_dump_json().encode())
    code, _, err = tapster("rollout", "forget", name)
    assert code == 1
    assert f"rollout {name} is driven by somebody@there now" in err
    put(f"{kept}/driver", record.driver.model_dump_json().encode())
    for command in ("abort", "resume"):
        assert f"`tapster rollout forget {name}`" in tapster("rollout", command, name)[2]
    assert tapster("rollout", "forget", name)[0] == 0
    assert records(settings) == []
