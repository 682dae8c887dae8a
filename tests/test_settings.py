"""Settings: what file and environment say, what wins, and how each mistake is told."""

import os
import re
import socket
from functools import reduce
from pathlib import Path

import pytest
from pydantic import ValidationError

from agent.options import options
from agent.settings import Settings, SettingsError, load
from agent.settings_file import render

COMMENTED = Path(__file__).parent.parent / "deploy" / "tapster.toml"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("TAPSTER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tapster.toml"


def problems(file: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        load(file)
    return str(caught.value)


def test_an_empty_file_gives_the_defaults(file: Path) -> None:
    file.write_text("")
    settings = load(file)
    assert settings.broker.port == 1883
    assert settings.paths.runtime == Path("/run/tapster")
    assert settings.limits.document_bytes == 262144
    assert settings.policy.partial is True
    assert not settings.broker.tls.enabled


def test_the_file_is_read_and_the_environment_wins_option_by_option(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('host = "db1"\n[broker]\nhost = "bus"\nport = 1884\n[labels]\nsite = "ams"\n')
    monkeypatch.setenv("TAPSTER_BROKER__PORT", "8883")
    monkeypatch.setenv("TAPSTER_LABELS__RACK", "12")
    monkeypatch.setenv("TAPSTER_POLICY__PARTIAL", "false")
    settings = load(file)
    assert (settings.host, settings.broker.host, settings.broker.port) == ("db1", "bus", 8883)
    assert settings.labels == {"site": "ams", "rack": "12"}
    assert settings.policy.partial is False


def test_a_secret_may_be_a_credential_of_systemd(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('[broker]\npassword_file = "credential:broker"\n[broker.tls]\nca_file = "credential:ca.pem"\n')
    assert "password_file = 'credential:broker'" in problems(file)
    assert "systemd gives this process no credentials" in problems(file)
    assert "/run/credentials/tapster.service/broker can't be read" in problems(file)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load(file).broker.password_file == tmp_path / "broker"
    assert load(file).broker.tls.ca_file == tmp_path / "ca.pem"
    for name in ("", "..", "../x", "/etc/shadow"):
        file.write_text(f'[broker]\npassword_file = "credential:{name}"\n')
        assert "a credential's name is a file name" in problems(file)


def test_commands_outside_the_unit_take_the_agents_credentials(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.setting_kinds.SERVICE_CREDENTIALS", tmp_path)
    file.write_text('[broker]\npassword_file = "credential:tapster.password"\n')
    assert "systemd gives this process no credentials" in problems(file)
    (tmp_path / "tapster.password").write_text("secret")
    assert load(file).broker.password_file == tmp_path / "tapster.password"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "own"))
    assert load(file).broker.password_file == tmp_path / "own/tapster.password"


def test_lists_and_labels_are_comma_separated_in_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('groups = ["old"]\n')
    monkeypatch.setenv("TAPSTER_GROUPS", "web, canary")
    monkeypatch.setenv("TAPSTER_BLKTAP__FORMATS", "aio,qcow2")
    monkeypatch.setenv("TAPSTER_LABELS", "site=ams, rack=12")
    settings = load(file)
    assert settings.groups == ("web", "canary")
    assert settings.blktap.formats == ("aio", "qcow2")
    assert settings.labels == {"site": "ams", "rack": "12"}


def test_an_empty_variable_is_as_none(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("[broker]\nport = 1884\n")
    monkeypatch.setenv("TAPSTER_BROKER__PORT", "")
    assert load(file).broker.port == 1884


def test_the_variable_names_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('fleet = "lab"\n')
    monkeypatch.setenv("TAPSTER_CONFIG", str(file))
    assert load().fleet == "lab"


def test_the_default_file_may_be_missing_and_a_named_one_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.settings.DEFAULT_FILE", tmp_path / "none.toml")
    assert load().fleet == "default"
    assert "none.toml: there is no such file; create it, or name another" in problems(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("hostname", "host"), [("DB1", "db1"), ("Db_1.Example.ORG", "db-1.example.org"), ("x" * 64, "x" * 63)]
)
def test_the_host_is_named_after_the_machine(
    hostname: str, host: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("")
    monkeypatch.setattr(socket, "gethostname", lambda: hostname)
    assert load(file).host == host


def test_a_machine_without_a_usable_name_is_told_to_set_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("")
    monkeypatch.setattr(socket, "gethostname", lambda: "__")
    assert re.search(r"host = '' \(its default on this host\): must be a text of the form", problems(file))


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[broker]\nprot = 1", "broker.prot (in FILE): there is no such option; did you mean broker.port?"),
        ("port = 1", "port (in FILE): there is no such option; did you mean broker.port?"),
        ("[brok]\nport = 1", "brok (in FILE): there is no such option; did you mean broker?"),
        ("_env_file = 'x'", "_env_file (in FILE): there is no such option"),
        ("[broker.tls]\nca = 'x'", "broker.tls.ca (in FILE): there is no such option"),
        ("[broker]\nport = 70000", "broker.port = 70000 (in FILE): must be a whole number, 1 to 65535"),
        ("[broker]\nport = true", "broker.port = True (in FILE): must be a whole number, 1 to 65535 (true and"),
        ("[broker]\nport = 'high'", "broker.port = 'high' (in FILE): must be a whole number, 1 to 65535"),
        ("[controller]\nresync = nan", "controller.resync = nan (in FILE): must be a number of seconds, 1 to 86400"),
        ("[controller]\nresync = inf", "controller.resync = inf (in FILE): must be a number of seconds, 1 to 86400"),
        ("[limits]\ndocument_bytes = 1", "limits.document_bytes = 1 (in FILE): must be a whole number of bytes, 1024"),
        ("[log]\nlevel = 'loud'", "log.level = 'loud' (in FILE): must be one of debug, info, warning, error"),
        ("[blktap]\njail = 'no'", "blktap.jail = 'no' (in FILE): must be one of require, best-effort"),
        ("[blktap]\nformats = ['raw']", "blktap.formats.0 = 'raw' (in FILE): must be a list, each one of aio, qcow"),
        ("[paths]\nstate = 'var'", "paths.state = 'var' (in FILE): must be an absolute path (it would depend"),
        ("host = 'Db1'", "host = 'Db1' (in FILE): must be a text of the form [a-z0-9]"),
        ("fleet = 'a/b'", "fleet = 'a/b' (in FILE): must be a text of the form"),
        ("groups = ['all']", "(every host is in the group 'all' already; leave it out)"),
        ("labels = {site = 'a,b'}", "labels.site = 'a,b' (in FILE): must be a table"),
        ("broker = 3", "broker (in FILE or the environment): is a section; set its options"),
        ("[broker]\nreconnect_min = 61.0", "broker (in FILE or the environment): reconnect_min must not be above"),
        ("[blktap]\ndevices = ['nbd', 'nbd-socket']", "in devices, nbd-socket stands alone"),
        ("[controller]\nretry_min = 61.0", "controller (in FILE or the environment): retry_min must not be above"),
        ("[broker.tls]\nkey_file = '/k'", "broker.tls (in FILE or the environment): cert_file and key_file need"),
        ("[broker.tls]\nkey_file = '/k'\ncert_file = '/c'", "cert_file needs ca_file, which turns on TLS"),
        ("host = \nport = 1", "FILE: is not TOML: Invalid value (at line 1, column 8)"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_what_would_be_right(toml: str, message: str, file: Path) -> None:
    file.write_text(toml)
    assert message.replace("FILE", str(file)) in problems(file)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("TAPSTER_BROKR__PORT", "1", "no such option; did you mean TAPSTER_BROKER__PORT?"),
        ("TAPSTER_BROKER__PROT", "1", "no such option; did you mean TAPSTER_BROKER__PORT?"),
        ("TAPSTER_BROKER", "{}", "TAPSTER_BROKER (in the environment): there is no such option"),
        ("TAPSTER_BROKER__PORT", "0", "broker.port = '0' (TAPSTER_BROKER__PORT in the environment): must be a whole"),
        ("TAPSTER_LABELS", "site", "as one text, labels are written site=ams,rack=12"),
    ],
)
def test_a_mistake_in_the_environment_is_named_too(
    variable: str, value: str, message: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("")
    monkeypatch.setenv(variable, value)
    assert message in problems(file)


def test_all_problems_are_told_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("prot = 1\n[limits]\nguests = 0\n[log]\nformat = 'xml'\n")
    monkeypatch.setenv("TAPSTER_FLEAT", "lab")
    lines = problems(file).splitlines()
    assert len(lines) == 5
    assert all(word in "\n".join(lines) for word in ("prot", "TAPSTER_FLEAT", "limits.guests", "log.format"))


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff", "is not UTF-8 at byte 0"), (None, "can't be read: Is a dir")]
)
def test_a_file_that_is_no_text_is_named(content: bytes | None, message: str, file: Path) -> None:
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    assert f"{file}: {message}" in problems(file)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().broker.port = 1  # type: ignore[misc]


def test_every_option_is_described_and_every_number_has_bounds() -> None:
    for option in options(Settings):
        assert option.field.description, option
        assert option.field.annotation not in (int, float) or re.search(r", [\d.]+ to [\d.]+$", option.allowed), option


def test_the_commented_file_is_what_the_model_says() -> None:
    assert COMMENTED.read_text() == render(), "write it anew: python -m agent.settings_file > deploy/tapster.toml"


def test_the_commented_file_can_be_used_as_it_is(file: Path) -> None:
    file.write_text("")
    defaults = load(file)
    file.write_text(render())
    assert load(file) == defaults


def test_what_the_commented_file_shows_is_the_default(file: Path) -> None:
    file.write_text(re.sub(r"^#(?=\w)", "", render(), flags=re.MULTILINE))
    settings = load(file)
    for option in options(Settings):
        if option.field.default_factory is None and option.field.default is not None:
            assert reduce(getattr, option.path, settings) == option.field.default, option
