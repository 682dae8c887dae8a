"""A real agent and a real operator on the kit's broker: client certificates, TLS, and a disk in the end."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from agent.setting_sections import TlsSettings
from tests.broker_kit.kit import Certificates, KitBroker
from tests.on_host import FOLDER_PREFIX
from tests.running.leaks import leaks
from tests.workbench import FLEET, Bench, domain, loop_disk


def toml(tls: TlsSettings) -> str:
    return "[broker.tls]\n" + "".join(f'{name} = "{file}"\n' for name, file in tls.model_dump().items())


class TlsBench(Bench):
    """A bench whose agent and ear have certificates."""

    def __init__(self, folder: Path, broker: KitBroker) -> None:
        self.certificates = broker.certificates
        self.operator = self.certificates.tls("operator", "alice")
        self.operators_port = broker.operators_port
        super().__init__(folder, broker, '[log]\nlevel = "debug"\n')
        self.tls = self.certificates.tls("host", self.host)
        self.config.write_text(self.config.read_text() + toml(self.tls))

    def _dial(self, ear: mqtt.Client) -> None:
        ear.tls_set(str(self.operator.ca_file), str(self.operator.cert_file), str(self.operator.key_file))
        ear.connect("localhost", self.operators_port)

    def tapster(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The operator's own command line."""
        config = self.folder / "operator.toml"
        config.write_text(f'fleet = "{FLEET}"\n[broker]\nport = {self.operators_port}\n{toml(self.operator)}')
        command = [sys.executable, "-c", "from agent.cli.app import main; main()", *words, "--config", str(config)]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


@pytest.fixture
def bench(broker: KitBroker) -> Iterator[TlsBench]:
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    host = TlsBench(folder, broker)
    try:
        host.start()
        host.wait_synced()
        yield host
    finally:
        host.close()
        shutil.rmtree(folder)


def test_a_disk_comes_up_goes_on_and_goes_down_over_tls(bench: TlsBench) -> None:
    image, data = bench.image("web"), os.urandom(4096)
    bench.push_disks("web", loop_disk("vda", image))
    bench.until_phase("web", "vda", "Up")
    with bench.stable("web", "vda").open("r+b", buffering=0) as device:
        device.write(data)
        os.fsync(device.fileno())
    assert image.read_bytes()[:4096] == data
    bench.restart()
    bench.until_phase("web", "vda", "Up")
    bench.absent("web")
    bench.until_guest("web", "Down")
    bench.assert_clean()
    assert not [line for line in bench.log_lines() if line["level"] in ("warning", "error")]


def test_an_operator_pushes_and_sees_status(bench: TlsBench) -> None:
    definition = bench.folder / "web.xml"
    definition.write_text(domain("web", loop_disk("vda", bench.image("web"))))
    pushed = bench.tapster("push", str(definition), "--host", bench.host, "--wait", "--output", "json")
    assert pushed.returncode == 0, pushed.stderr
    assert [one["outcome"] for one in json.loads(pushed.stdout)] == ["done"]
    shown = bench.tapster("status", "--host", bench.host)
    assert "Up" in shown.stdout, shown.stderr
    bench.absent("web")
    bench.until_guest("web", "Down")


def test_an_agent_with_an_expired_certificate_says_so_and_goes_on_with_the_new_one(
    bench: TlsBench, certificates: Certificates
) -> None:
    """Disks stay; the new certificate is read at the next attempt to connect, without a restart."""
    folder = certificates.folder / "hosts" / bench.host
    image = bench.image("web")
    bench.push_disks("web", loop_disk("vda", image))
    bench.until_phase("web", "vda", "Up")
    bench.stop()
    shutil.rmtree(folder)
    certificates.make("host", bench.host, days="0")
    bench.start()
    bench.until(lambda: any("broker" in line["event"] and line["level"] == "warning" for line in bench.log_lines()))
    assert bench.stable("web", "vda").is_block_device()
    shutil.rmtree(folder)
    certificates.make("host", bench.host)
    bench.wait_synced()
    bench.absent("web")
    bench.until_guest("web", "Down")


def test_the_private_key_is_told_to_nobody(bench: TlsBench) -> None:
    assert bench.tls.key_file is not None
    _, *lines, _ = bench.tls.key_file.read_text().splitlines()
    bench.push_disks("web", loop_disk("vda", bench.image("web")))
    bench.until_phase("web", "vda", "Up")
    bench.absent("web")
    bench.until_guest("web", "Down")
    assert len(lines) > 1
    assert [place for line in lines for place in leaks(bench, line)] == []
