"""`/metrics` of a real agent, scraped as Prometheus does and read by its own parser."""

import os
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.client import HTTPConnection
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from agent.setting_sections import MetricsSettings
from tests.broker import free_port
from tests.faults.harm import write_through
from tests.workbench import Bench, bench, loop_disk, tap_disk

OPENMETRICS = "application/openmetrics-text;version=1.0.0"


class Scraped:
    """An agent and where its metrics are."""

    def __init__(self, host: Bench, port: int) -> None:
        self.host = host
        self.port = port

    def get(self, path: str = "/metrics", method: str = "GET", accept: str = "") -> tuple[int, str, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()

    def value(self, name: str, **labels: str) -> float:
        samples = [sample for family in parse_text(self.get()[2]) for sample in family.samples if sample.name == name]
        return sum(one.value for one in samples if labels.items() <= one.labels.items())


@pytest.fixture(scope="module")
def scraped() -> Iterator[Scraped]:
    port = free_port()
    with bench(_listen(port)) as host:
        yield Scraped(host, port)


def test_disks_queue_bus_and_bytes_are_there(scraped: Scraped) -> None:
    host = scraped.host
    host.push_disks("vm1", loop_disk("vda", host.image("a.img")), loop_disk("vdb", host.images / "missing.img"))
    host.until_phase("vm1", "vda", "Up")
    host.until_phase("vm1", "vdb", "Refused")
    assert scraped.value("tapster_disks", phase="Up", backend="loop") == 1
    assert scraped.value("tapster_disks", phase="Refused", backend="none") == 1
    assert scraped.value("tapster_disks", phase="Lost") == 0
    assert scraped.value("tapster_bus_connected") == 1
    host.until(lambda: scraped.value("tapster_queued_disks") == 0)  # the missing image is looked for again and again
    assert scraped.value("tapster_reconcile_seconds_count", cause="document", phase="Up") == 1
    assert scraped.value("tapster_bus_lag_seconds_count") > 0
    host.stable("vm1", "vda").write_bytes(b"x" * 8192)
    os.sync()
    assert scraped.value("tapster_disk_written_bytes_total", guest="vm1", target="vda") >= 8192


def test_a_device_taken_away_is_counted_as_a_repair(scraped: Scraped) -> None:
    host = scraped.host
    host.push_disks("vm2", loop_disk("vda", host.image("b.img")))
    before = host.until_phase("vm2", "vda", "Up")
    repairs = scraped.value("tapster_drift_repairs_total")
    subprocess.run(["losetup", "-d", before["device_path"]], check=True)
    host.until(lambda: host.disk("vm2", "vda")["diskseq"] not in {None, before["diskseq"]})
    assert scraped.value("tapster_drift_repairs_total") == repairs + 1


@pytest.mark.parametrize("held", [False, True])
def test_a_tap_that_was_killed_is_counted_as_a_restart(scraped: Scraped, *, held: bool) -> None:
    host, guest = scraped.host, f"tap-{held}"
    host.push_disks(guest, tap_disk("vda", host.formatted(f"{guest}.qcow2", "qcow2"), "qcow2"))
    before = host.until_phase(guest, "vda", "Up")
    restarts = scraped.value("tapster_tap_restarts_total")
    with host.stable(guest, "vda").open("rb") if held else nullcontext():
        os.kill(before["effective"]["tap"]["process_id"], signal.SIGKILL)
        if held:
            host.until_phase(guest, "vda", "Lost")
            assert scraped.value("tapster_tap_restarts_total") == restarts
    host.until(lambda: (host.disk(guest, "vda")["last_outage"] or {}).get("ended"))
    assert scraped.value("tapster_tap_restarts_total") == restarts + 1
    host.absent(guest)
    host.until_guest(guest, "Down")


def test_both_formats_are_what_their_parsers_read(scraped: Scraped) -> None:
    _, kind, text = scraped.get()
    assert kind.startswith("text/plain")
    assert len(list(parse_text(text))) > 10
    _, kind, text = scraped.get(accept=OPENMETRICS)
    assert kind.startswith("application/openmetrics-text")
    assert text.count("# EOF") == 1
    assert len(list(parse_openmetrics(text))) > 10  # type: ignore[no-untyped-call]


def test_other_paths_methods_and_junk_do_no_harm(scraped: Scraped) -> None:
    assert scraped.get("/")[0] == 404
    assert scraped.get(method="POST")[0] == 405
    assert scraped.get(method="HEAD")[2] == ""
    for junk in (b"\0" * 100, b"GET /metrics HTTP/1.1\r\n" + b"x" * 20_000, b""):
        with socket.create_connection(("127.0.0.1", scraped.port), timeout=20) as connection:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert scraped.get()[0] == 200


def test_a_disk_that_hangs_holds_up_no_scrape(scraped: Scraped) -> None:
    host = scraped.host
    host.push_disks("vm4", tap_disk("vda", host.image("t.img")), loop_disk("vdb", host.image("u.img")))
    host.until_guest("vm4", "Up")
    [server] = host.servers()
    writer = threading.Thread(target=write_through, args=(host.stable("vm4", "vda"), b"x" * 4096))
    os.kill(server, signal.SIGSTOP)
    writer.start()
    try:
        host.until(lambda: scraped.value("tapster_disk_requests_in_flight", guest="vm4", target="vda") > 0)
        host.resync()
        host.stable("vm4", "vdb").write_bytes(b"x" * 8192)
        written = {"guest": "vm4", "target": "vdb"}
        host.until(lambda: scraped.value("tapster_disk_written_bytes_total", **written) >= 8192)
        assert scraped.value("tapster_disks", phase="Up") >= 1
        assert writer.is_alive()
    finally:
        os.kill(server, signal.SIGCONT)
        writer.join()


def test_a_socket_is_for_its_owner_and_group_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    path.touch()  # of an agent that was killed
    with bench(f'[metrics]\nlisten = "unix:{path}"'):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(path))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_a_port_that_is_taken_holds_up_no_disk() -> None:
    with socket.create_server(("127.0.0.1", port := free_port())), bench(_listen(port)) as host:
        host.push_disks("vm1", loop_disk("vda", host.image("a.img")))
        host.until_phase("vm1", "vda", "Up")
        assert any(line["event"] == "metrics can't be served" for line in host.log_lines())


def _listen(port: int) -> str:
    return f'[metrics]\nlisten = "127.0.0.1:{port}"'


@pytest.mark.parametrize("listen", ["127.0.0.1:9477", "[::1]:1", "unix:/run/tapster/m.sock", "127.1.2.3:65535"])
def test_what_is_local_may_be_listened_on(listen: str) -> None:
    assert MetricsSettings(listen=listen).listen == listen


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:9477", ":9477", "9477", "10.0.0.1:1", "localhost:1", "unix:m", "127.0.0.1:0"]
)
def test_nothing_else_may(listen: str) -> None:
    with pytest.raises(ValueError, match=r"it must be an address of the loopback|absolute path|port from 1"):
        MetricsSettings(listen=listen)
