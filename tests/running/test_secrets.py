"""The broker's password: given by file or by systemd, told to the broker and to nobody else."""

import secrets
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.redaction import HIDDEN
from agent.setting_sections import BrokerSettings
from agent.settings import Settings, load
from tests.broker import Broker, free_port, running_broker
from tests.running.leaks import leaks
from tests.running.listeners import Listener, listening
from tests.workbench import Bench, bench, loop_disk, tap_disk

PASSWORD = f"secret-{secrets.token_hex(16)}"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """One that knows users; the bench's own ear comes without a name."""
    passwords = tmp_path / "passwords"
    passwords.write_text(f"agent:{PASSWORD}\n")
    subprocess.run(["mosquitto_passwd", "-U", passwords], check=True)
    with running_broker(f"password_file {passwords}\n") as broker:
        yield broker


@pytest.fixture
def host(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "broker-password").write_text(f"{PASSWORD}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    monkeypatch.setenv("TAPSTER_BROKER__PASSWORD_FILE", "credential:broker-password")
    monkeypatch.setenv("TAPSTER_BROKER__USERNAME", "agent")
    with bench(f'[log]\nlevel = "debug"\n[metrics]\nlisten = "127.0.0.1:{free_port()}"', broker) as host:
        yield host


def told_on_request(host: Bench) -> dict[str, str]:
    """What the agent and the command line say to those who ask."""
    listen = load(host.config).metrics.listen
    told = {"metrics": urllib.request.urlopen(f"http://{listen}/metrics", timeout=20).read().decode()}
    for words in ("doctor", "status", "describe host"):
        command = [sys.executable, "-c", "from agent.cli.app import main; main()", *words.split()]
        name = [host.host] if "host" in words else []
        command += [*name, "--config", str(host.config)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert done.stdout, done.stderr
        told[words] = done.stdout + done.stderr
    return told


def test_the_password_is_told_to_the_broker_alone(host: Bench, broker: Broker, tmp_path: Path) -> None:
    host.push_disks("web", loop_disk("vda", host.image("web")))
    host.until_phase("web", "vda", "Up")
    log = (broker.folder / "log").read_text()
    assert PASSWORD not in log
    assert leaks(host, PASSWORD, **told_on_request(host)) == []
    wrong = f"wrong-{PASSWORD[::-1]}"
    (tmp_path / "credentials/broker-password").write_text(wrong)
    broker.restart()
    host.until(lambda: any("refused" in line["event"] for line in host.log_lines()))
    (tmp_path / "credentials/broker-password").write_text(PASSWORD)
    host.resync()
    host.until(lambda: [line["event"] for line in host.log_lines()].count("everything retained has arrived") > 1)
    assert leaks(host, PASSWORD) == leaks(host, wrong) == []
    assert leaks(host, "everything retained has arrived") == ["the agent's log"]
    host.absent("web")
    host.until_guest("web", "Down")


def test_a_support_bundle_takes_the_password_out_of_all_that_it_collects(host: Bench, tmp_path: Path) -> None:
    """Also out of what somebody wrote beside it, as in a comment."""
    settings = tmp_path / "commented.toml"
    settings.write_text(f"# {PASSWORD}\n{host.config.read_text()}")
    bundle = tmp_path / "bundle.tar.gz"
    program = "from agent.cli.app import main; main()"
    command = [sys.executable, "-c", program, "support-bundle", "--config", str(settings), "--file", str(bundle)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with tarfile.open(bundle) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        told = {name: file.read().decode() for name, file in files.items() if file}
    assert leaks(host, PASSWORD, **told) == []
    hidden = [Path(name).name for name, text in told.items() if text.startswith(f"# {HIDDEN}\n")]
    assert hidden == ["tapster.toml"], "it was there to be found"


def test_settings_name_the_file_and_never_its_content(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    settings = Settings(broker=BrokerSettings(password_file=tmp_path / "password"))
    assert PASSWORD not in repr(settings) + settings.model_dump_json()


def test_nothing_listens_but_on_loopback_or_for_root(host: Bench) -> None:
    host.push_disks("web", tap_disk("vda", host.image("web")))
    host.until_phase("web", "vda", "Up")
    found = listening(host)
    assert {one.place for one in found} > {"127.0.0.1"}, "metrics, and a socket of the disk's server"
    assert [one for one in found if not one.is_private(host.runtime)] == []
    host.absent("web")
    host.until_guest("web", "Down")


@pytest.mark.parametrize("place", ["0.0.0.0", "::", "192.0.2.1", "/dev/null"])
def test_such_a_listener_would_be_found(place: str) -> None:
    assert not Listener(place).is_private(Path("/dev"))
