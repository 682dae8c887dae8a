"""What the scripts in deploy/ must not do to the host, tried in mount namespaces that hide its own folders."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent

LEFT_BEHIND = """
mount -t tmpfs none /run && mount -t tmpfs none /var/lib
mkdir -p /var/lib/tapster-quickstart/state /run/tapster/disks
echo 4194304 >/var/lib/tapster-quickstart/agent.pid
: >/run/tapster/agent.lock
"""
DOWN = """
status=0
"$1/deploy/quickstart" --down >&2 || status=$?
ls -d /run/tapster/agent.lock /var/lib/tapster-quickstart 2>/dev/null || true
exit $status
"""
A_REAL_AGENT = "exec 9>/run/tapster/agent.lock && flock 9\n"

INSTALL = """
mount --bind "$2" /usr/sbin
cd "$1" && . deploy/lib/console.sh && . deploy/lib/debian.sh
without_starting_services sh -c "$3"
"""

pytestmark = pytest.mark.usefixtures("host_parts")


def apart(script: str, *words: str | Path) -> list[str | Path]:
    return ["unshare", "--mount", "bash", "-euc", script, "bash", CHECKOUT, *words]


def quickstart_down(before: str) -> tuple[int, str, list[str]]:
    """Its exit code, what it says, and what is still there."""
    words = apart(LEFT_BEHIND + before + DOWN)
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    return done.returncode, done.stderr, done.stdout.split()


def test_quickstart_takes_nothing_down_beside_a_real_agent() -> None:
    code, said, left = quickstart_down(A_REAL_AGENT)
    assert code == 1, said
    assert "another agent runs on /run/tapster" in said
    assert left == ["/run/tapster/agent.lock", "/var/lib/tapster-quickstart"]


def test_quickstart_takes_down_what_its_killed_agent_has_left() -> None:
    code, said, left = quickstart_down("")
    assert (code, left) == (0, []), said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_services_may_start_again_when_apt_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    words = apart(INSTALL, tmp_path, "echo started; exec sleep 60")
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as script:
        assert script.stdout
        assert script.stdout.readline() == b"started\n"
        assert (tmp_path / "policy-rc.d").read_text().endswith("exit 101\n")
        os.killpg(script.pid, number)
        script.stdout.read()  # until the last of them has ended
    assert list(tmp_path.iterdir()) == []


def test_what_apt_says_is_told_and_a_policy_of_the_host_s_own_stays(tmp_path: Path) -> None:
    assert subprocess.run(apart(INSTALL, tmp_path, "exit 7"), check=False).returncode == 7
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "policy-rc.d").write_text("own")
    assert subprocess.run(apart(INSTALL, tmp_path, "exit 7"), check=False).returncode == 7
    assert (tmp_path / "policy-rc.d").read_text() == "own"
