"""The tracer itself: it kills in front of an effect and not after it, and an effect that it does not know is told."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, threading
os.chdir(sys.argv[1])
input()
os.mkdir("a")
thread = threading.Thread(target=os.mkdir, args=["b"])
thread.start()
thread.join()
os.mkfifo("c")
os.rename("a", "d")
os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
"""


def traced(folder: Path, *point: str) -> tuple[list[str], int]:
    """Trace the program; returns what the tracer said, and the program's exit code."""
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, folder], stdin=subprocess.PIPE)
    words = [str(program.pid), str(folder), *point]
    with subprocess.Popen([sys.executable, "-m", "tests.crash.tracer", *words], stdout=subprocess.PIPE) as tracer:
        assert tracer.stdout
        assert tracer.stdout.readline() == b"ready\n"
        program.communicate(b"\n")
        return tracer.stdout.read().decode().splitlines(), program.returncode


@pytest.mark.parametrize(("point", "left"), [("mkdir a", []), ("mkdir b", ["a"]), ("rename a d", ["a", "b", "c"])])
def test_a_process_is_killed_in_front_of_the_point_whatever_its_thread(
    point: str, left: list[str], tmp_path: Path
) -> None:
    said, code = traced(tmp_path, point, "1")
    assert said[-2:] == [point, "killed"]
    assert code == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_every_effect_is_told_and_an_unknown_one_too(tmp_path: Path) -> None:
    said, code = traced(tmp_path)
    unknown = [line for line in said if line.startswith("unclassified: mknod")]
    assert [line for line in said if line not in unknown] == ["mkdir a", "mkdir b", "rename a d", "start a process"]
    assert (len(unknown), code) == (1, 0)
