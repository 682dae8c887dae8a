"""What `tapster doctor` finds on a host that is well, and what it says of each thing that was broken."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.broker import Broker
from tests.workbench import Bench, loop_disk


def doctor(config: Path, *words: str, under: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [
        *under,
        sys.executable,
        "-c",
        "from agent.cli.app import main; main()",
        "doctor",
        "--config",
        str(config),
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def findings(config: Path, under: Sequence[str] = ()) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit code, and what was found by subject."""
    done = doctor(config, "--output", "json", under=under)
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout):
        found.setdefault(finding["subject"], []).append(finding)
    return done.returncode, found


def test_a_host_that_is_well(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    bench.until_guest("vm1", "Up")
    _, found = findings(bench.config)
    for subject in ("kernel", "loop", "blktap", "server", "store", "pool", "broker", "access", "agent"):
        assert {finding["level"] for finding in found[subject]} == {"ok"}, found[subject]
    assert found["devices"][-1]["message"] == "1 loop devices are this agent's"


@pytest.fixture
def config(tmp_path: Path, broker: Broker) -> Path:
    """Settings of a host on which no agent runs."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "state").mkdir()
    file = tmp_path / "tapster.toml"
    file.write_text(f"""
host = "db1"
[paths]
runtime = "{tmp_path}/run"
state = "{tmp_path}/state"
[images]
pools = ["{tmp_path}/pool"]
[broker]
port = {broker.port}
""")
    return file


def test_without_an_agent_a_session_is_tried(config: Path) -> None:
    code, found = findings(config)
    assert code == 1
    assert found["access"][0]["message"].startswith("a session works; 0 definitions")
    assert found["agent"][0] == {
        "subject": "agent",
        "level": "problem",
        "message": "no agent runs here",
        "mend": "systemctl start tapster; journalctl -u tapster -n 50",
    }


def damage_the_store(folder: Path) -> None:
    with sqlite3.connect(folder / "state/store.sqlite") as connection:
        connection.execute("CREATE TABLE x (y)")
        connection.executemany("INSERT INTO x VALUES (?)", [("y" * 100,)] * 1000)
    connection.close()
    with (folder / "state/store.sqlite").open("r+b") as file:
        file.seek(4096 + 5)
        file.write(b"\xff" * 2000)


def let_everybody_write(folder: Path) -> None:
    (folder / "pool").chmod(0o777)


def remove_the_pool(folder: Path) -> None:
    (folder / "pool").rmdir()


@pytest.mark.parametrize(
    ("harm", "subject", "words", "mend"),
    [
        (damage_the_store, "store", "is damaged", "restore it from a backup"),
        (let_everybody_write, "pool", "can be written by everybody", "chmod o-w"),
        (remove_the_pool, "pool", "none of the image pools exists", "mkdir -p"),
    ],
)
def test_what_is_broken_is_named_with_what_mends_it(
    config: Path, harm: Callable[[Path], None], subject: str, words: str, mend: str
) -> None:
    harm(config.parent)
    _, found = findings(config)
    (finding,) = found[subject]
    assert finding["level"] == "problem"
    assert words in finding["message"]
    assert mend in finding["mend"]


def loop_with_partitions(folder: Path) -> str:
    (folder / "max_part").write_text("8\n")
    return f"mount --bind {folder}/max_part /sys/module/loop/parameters/max_part"


def open_files_without_inodes(folder: Path) -> str:
    (folder / "fdinfo").mkdir()
    for number in range(64):
        (folder / "fdinfo" / str(number)).write_text("pos:\t0\nflags:\t0100000\nmnt_id:\t24\n")
    return f"mount --bind {folder}/fdinfo /proc/$$/fdinfo"


def devices_without_numbers(_folder: Path) -> str:
    return "mount -t tmpfs tapster-test /sys/block && mkdir /sys/block/sda"


@pytest.mark.parametrize(
    ("shows", "subjects", "words", "mend"),
    [
        (loop_with_partitions, ["loop"], "max_part=8", "modprobe -r loop && modprobe loop max_part=0"),
        (open_files_without_inodes, ["kernel", "loop", "blktap"], "which files are open", "boot Linux 5.15 or newer"),
        (devices_without_numbers, ["kernel", "loop", "blktap"], "diskseq", "boot Linux 5.15 or newer"),
    ],
)
@pytest.mark.usefixtures("host_parts")
def test_a_kernel_that_shows_too_little_is_named(
    config: Path, shows: Callable[[Path], str], subjects: list[str], words: str, mend: str
) -> None:
    under = ["unshare", "--mount", "sh", "-c", f'{shows(config.parent)} && exec "$@"', "sh"]
    code, found = findings(config, under)
    assert code == 1
    for subject in subjects:
        assert words in found[subject][0]["message"]
    assert found[subjects[0]][0]["mend"] == mend


def test_a_program_that_is_missing_is_named_with_its_package(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    _, found = findings(config)
    assert found["blktap"][0]["level"] == "problem"
    assert found["blktap"][0]["mend"] == "apt-get install qemu-utils"


def test_a_broker_that_is_away(config: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: refused
        taken.bind(("127.0.0.1", 0))
        config.write_text(config.read_text().partition("port =")[0] + f"port = {taken.getsockname()[1]}\n")
        code, found = findings(config)
    assert code == 1
    assert "can't be reached: Connection refused" in found["broker"][0]["message"]
    assert "access" not in found


def certificate(folder: Path, name: str, days: float) -> None:
    """A certificate of its own for `name` that ends in so many days, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    ends = datetime.now(UTC) + timedelta(days=days, minutes=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(ends - timedelta(days=1000))
        .not_valid_after(ends)
        .sign(key, hashes.SHA256())
    )
    (folder / "host.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "host.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "host.key").chmod(0o600)
    shutil.copy(folder / "host.pem", folder / "ca.pem")


@pytest.mark.parametrize(
    ("name", "days", "level", "words"),
    [
        ("db1", 200, "ok", "in 200 days"),
        ("db1", 20, "warning", "in 20 days"),
        ("db1", -3, "problem", "2 days ago"),
        ("db2", 200, "problem", "is for db2, and this host is called db1"),
    ],
)
def test_certificates_that_end_or_are_another_s(config: Path, name: str, days: int, level: str, words: str) -> None:
    folder = config.parent
    certificate(folder, name, days)
    files = "".join(f'{key}_file = "{folder}/{file}"\n' for key, file in
                    (("ca", "ca.pem"), ("cert", "host.pem"), ("key", "host.key")))  # fmt: skip
    config.write_text(config.read_text() + f"[broker.tls]\n{files}")
    _, found = findings(config)
    assert any(one["level"] == level and words in one["message"] for one in found["certificate"]), found["certificate"]
    assert found["key"][0]["level"] == "ok"

    os.chmod(folder / "host.key", 0o644)  # noqa: PTH101
    _, found = findings(config)
    assert found["key"][0]["level"] == "problem"
    assert found["key"][0]["mend"] == f"chmod 600 {folder}/host.key"


def test_certificates_that_can_not_be_used_are_named_and_the_network_is_not_blamed(config: Path) -> None:
    folder = config.parent
    (folder / "other").mkdir()
    certificate(folder, "db1", 200)
    certificate(folder / "other", "db1", 200)
    plain = config.read_text() + "[broker.tls]\n"
    for ca, key, words in (
        ("gone.pem", "host.key", f"ca_file {folder}/gone.pem: No such file or directory"),
        ("ca.pem", "gone.key", f"cert_file {folder}/host.pem with key_file {folder}/gone.key: No such file"),
        ("ca.pem", "other/host.key", f"cert_file {folder}/host.pem with key_file {folder}/other/host.key: [X509"),
    ):
        config.write_text(
            f'{plain}ca_file = "{folder}/{ca}"\ncert_file = "{folder}/host.pem"\nkey_file = "{folder}/{key}"\n'
        )
        _, found = findings(config)
        assert words in found["tls"][0]["message"]
        assert "broker" not in found
        command = [sys.executable, "-c", "from agent.cli.app import main; main()", "status", "--config", str(config)]
        assert words in subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_a_device_that_nobody_asks_for(bench: Bench) -> None:
    bench.push_disks("vm1", loop_disk("vda", bench.image("a.img")))
    bench.until_guest("vm1", "Up")
    bench.stop()
    bench.stable("vm1", "vda").unlink()
    _, found = findings(bench.config)
    (device,) = bench.loops()
    # Others may have devices on this kernel too.
    mends = {each["message"]: each["mend"] for each in found["devices"]}
    assert mends[f"{device.path} (vm1/vda) has no stable path: no document asks for it"] == "tapster gc"


def test_the_table_names_what_to_do(config: Path) -> None:
    done = doctor(config)
    assert done.returncode == 1
    assert "agent: no agent runs here\n  what to do: systemctl start tapster" in done.stdout


def test_brackets_in_a_name_are_shown_as_they_are(config: Path) -> None:
    config.write_text(config.read_text().replace("/pool", "/po[/x]ol[bold]"))
    table, _, _ = doctor(config).stdout.partition("what to do")
    assert f"none of the image pools exists (images.pools: {config.parent}/po[/x]ol[bold])" in table
