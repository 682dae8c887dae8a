"""`tapster render --guest` takes the definition from the bus."""

import json
import subprocess
import sys

from tests.workbench import Bench, domain, loop_disk


def render(bench: Bench, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from agent.cli.app import main; main()", "render", "--config", str(bench.config)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def test_the_definition_is_the_hosts_or_that_of_all_hosts(host: Bench) -> None:
    host.push_disks("mine", loop_disk("vda", host.image("mine.img"), "<readonly/>"))
    host.until_guest("mine", "Up")
    done = render(host, "--to", "firecracker", "--guest", "mine")
    (drive,) = json.loads(done.stdout)["drives"]
    assert (done.returncode, done.stderr, drive["is_read_only"]) == (0, "", True)
    assert drive["path_on_host"] == str(host.stable("mine", "vda"))
    everywhere = f"{host.topics.partition('/hosts/')[0]}/groups/all/desired/guests/ours"
    host.publish(everywhere, domain("ours", loop_disk("vdb", host.image("ours.img"))))
    host.until_guest("ours", "Up")
    assert str(host.stable("ours", "vdb")) in render(host, "--to", "qemu", "--guest", "ours").stdout
    host.publish(everywhere, b"")
    for guest in ("none", "../none"):
        failed = render(host, "--to", "xl", "--guest", guest)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert guest in failed.stderr
    assert render(host, "--to", "xl").returncode == 2
    assert render(host, "--to", "other", "--guest", "mine").returncode == 2
