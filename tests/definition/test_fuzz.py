"""A short run of the coverage-guided fuzzer."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 8
DISK = "<source file='/a'/><target dev='vda'/><iotune><total_iops_sec>9</total_iops_sec></iotune>"
SEEDS = (
    f"<domain><name>web</name><devices><disk driver='blktap:aio'>{DISK}</disk></devices></domain>",
    f"<domain><name>db</name><devices><disk><driver type='qcow2' cache='none'/>{DISK}</disk></devices></domain>",
    "name = 'web'\ndisk = [ 'tap:aio:/a,xvda,w', 'format=raw, vdev=hda, access=rw, target=/b' ]\n",
    "(domain (name web)(device (vbd (uname phy:vg/a)(dev sda1)(mode w))))",
)

WHY_NOT = "atheris has no package for this Python or machine"


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason=WHY_NOT)
def test_no_bytes_get_the_parser_out_of_step(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS):
        (corpus / str(number)).write_text(seed)
    command = [sys.executable, "-m", "tests.definition.fuzz_atheris"]
    options = [f"-max_total_time={SECONDS}", "-max_len=2048", f"-artifact_prefix={tmp_path}/", str(corpus)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "DONE" in done.stderr
