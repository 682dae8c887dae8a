"""What `tapster support-bundle` takes along, and the secrets that it never does."""

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.redaction import HIDDEN, Redaction
from tests.doctor.test_doctor import certificate
from tests.workbench import Bench, loop_disk

PLANTED = "correct-horse-battery-staple"


def bundle(config: Path, file: Path, *, program: str = "pass", **environment: str) -> subprocess.CompletedProcess[str]:
    program += "; from agent.cli.app import main; main()"
    command = [sys.executable, "-c", program, "support-bundle", "--config", str(config), "--file", str(file)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=100, env=os.environ | environment
    )


def contents(file: Path) -> dict[str, str]:
    with tarfile.open(file) as tar:
        return {one.name.partition("/")[2]: tar.extractfile(one).read().decode() for one in tar}  # type: ignore[union-attr]


def test_a_bundle_for_which_there_is_no_room_is_not_left_in_part(tmp_path: Path) -> None:
    (tmp_path / "tapster.toml").write_text(f'broker.port = 1\npaths.state = "{tmp_path}"\n')
    program = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    done = bundle(tmp_path / "tapster.toml", tmp_path / "out.tar.gz", program=program)
    assert done.returncode == 1
    assert f"{tmp_path}/out.tar.gz: can't be written: File too large; name a file where" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.tar.gz").exists()


def test_it_has_what_is_needed_and_no_secret(bench: Bench, tmp_path: Path) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    bench.until_guest("vm1", "Up")
    certificate(tmp_path, bench.host, 100)
    (tmp_path / "password").write_text(f"{PLANTED}\n")
    key = (tmp_path / "host.key").read_text()
    bench.config.write_text(
        bench.config.read_text().replace(
            "[broker]", f'# the password is "{PLANTED}"\n[broker]\npassword_file = "{tmp_path}/password"', 1
        )
        + f"\n# somebody pasted it here:\n# {key.replace(chr(10), chr(10) + '# ')}\n"
    )
    done = bundle(bench.config, tmp_path / "out.tar.gz", TAPSTER_BROKER__USERNAME=PLANTED)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/out.tar.gz\n"
    assert (tmp_path / "out.tar.gz").stat().st_mode & 0o777 == 0o600

    parts = contents(tmp_path / "out.tar.gz")
    assert '"vm1"' in parts["status.json"]
    assert '"subject": "kernel"' in parts["doctor.json"]
    assert bench.host in parts["tapster.toml"]
    assert {"journal.txt", "mounts.txt", "loop-devices.txt", "stable-paths.txt", "kernel.txt"} <= parts.keys()
    secret = [line for line in key.splitlines() if not line.startswith("-----")]
    for name, text in parts.items():
        assert PLANTED not in text, name
        assert not [line for line in secret if line in text], name


def test_a_file_that_exists_is_not_overwritten(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    done = bundle(bench.config, tmp_path / "x")
    assert done.returncode == 1
    assert "File exists; name another file with --file" in done.stderr
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    [
        'password = "S3cr3t!x"',
        "password: S3cr3t!x",
        '{"password": "S3cr3t!x"}',
        "<graphics type='vnc' passwd='S3cr3t!x'/>",
        "broker_password=S3cr3t!x",
        "MQTT_PASSWORD='S3cr3t!x'",
        "mqtts://host:S3cr3t!x@broker.example.net:8883",
        "<auth username='u'><secret type='ceph' uuid='S3cr3t!x'/></auth>",
        "-----BEGIN EC PRIVATE KEY-----\nS3cr3t!x\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nS3cr3t!x\n(cut off",
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str) -> None:
    redacted = Redaction(iter(()))(f"before {text} after")
    assert "S3cr3t!x" not in redacted
    assert "S3cr3t!x" not in Redaction(iter(()))(text)
    assert redacted.startswith("before ")
    assert HIDDEN in redacted


def test_what_is_none_stays() -> None:
    text = 'password_file = "/etc/tapster/password"\nkey_file = "/etc/tapster/host.key"\nguest=vm1 target=vda\n'
    assert Redaction(iter(()))(text) == text


@given(st.text(min_size=4), st.text(), st.text())
def test_a_known_secret_never_comes_through(secret: str, before: str, after: str) -> None:
    def known() -> Iterator[str]:
        yield secret

    if secret not in HIDDEN:
        redacted = Redaction(known())(before + secret + after)
        assert secret not in redacted.replace(HIDDEN, "")
