"""The broker kit at work: certificates made by its script, and a mosquitto with its configuration."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGKILL

from agent.setting_sections import BrokerSettings, TlsSettings
from tests.broker import Broker, free_port

KIT = Path(__file__).parents[2] / "deploy/broker"
HOME = "/etc/mosquitto/tapster"


class Certificates:
    """A folder of `make-certificates`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.make("authorities")
        self.make("broker", "localhost", "127.0.0.1")

    def make(self, *words: str, days: str = "30") -> str:
        """Run the script; returns what it says."""
        command = [str(KIT / "make-certificates"), str(self.folder), *words]
        environment = {"PATH": "/usr/bin:/bin", "DAYS": days}
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tls(self, kind: str, name: str) -> TlsSettings:
        """What a host or an operator of that name has, made if need be."""
        folder = self.folder / f"{kind}s" / name
        if not folder.exists():
            self.make(kind, name)
        return TlsSettings(ca_file=folder / "ca.pem", cert_file=folder / f"{kind}.pem", key_file=folder / f"{kind}.key")


class KitBroker(Broker):
    """A mosquitto with the kit's own configuration, at other ports and with other folders."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        super().__init__(folder)
        self.certificates = certificates
        self.host = "localhost"
        self.operators_port = free_port()

    @property
    def ports(self) -> list[int]:
        """Hosts' and operators'; it opens one after the other."""
        return [self.port, self.operators_port]

    def configuration(self) -> str:
        text = (KIT / "mosquitto.conf").read_text()
        for usual, port in (("8883", self.port), ("8884", self.operators_port)):
            text, replaced = re.subn(rf"^listener {usual}$", f"listener {port} 127.0.0.1", text, flags=re.MULTILINE)
            assert replaced == 1
        # Debian's own mosquitto.conf has the rest, and mosquitto's user could not read a folder of root's.
        rest = f"user root\npersistence true\npersistence_location {self.folder}/\nlog_dest stderr\nlog_type all\n"
        return text.replace(HOME, str(self.certificates.folder / "mosquitto")) + rest

    def as_host(self, name: str, *, port: int | None = None) -> BrokerSettings:
        """The settings of a host."""
        return self._settings(self.certificates.tls("host", name), port or self.port)

    def as_operator(self, name: str = "alice", *, port: int | None = None) -> BrokerSettings:
        """The settings of an operator."""
        return self._settings(self.certificates.tls("operator", name), port or self.operators_port)

    def _settings(self, tls: TlsSettings, port: int) -> BrokerSettings:
        return BrokerSettings(
            host=self.host, port=port, tls=tls, connect_timeout=5, reconnect_min=0.1, reconnect_max=0.5, will_delay=0
        )


@contextmanager
def kit_broker(folder: Path, certificates: Certificates) -> Iterator[KitBroker]:
    """The broker, running inside the block."""
    broker = KitBroker(folder, certificates)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop(SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
