"""What a claim on a block device is about: the very device, or a drive whatever disc is in it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconcilers import block
from reconcilers.block import BlockClaim
from reconcilers.loop.minors import LOOP_MAJOR


@pytest.fixture
def device(host_parts: None, image: Path) -> Iterator[Path]:
    made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=True)
    node = Path(made.stdout.strip())
    yield node
    subprocess.run(["losetup", "-d", node], check=True)


def bind_anew(device: Path, image: Path) -> None:
    subprocess.run(["losetup", "-d", device], check=True)
    subprocess.run(["losetup", device, image], check=True)


@pytest.mark.parametrize("is_drive", [False, True])
def test_another_disc_is_in_the_same_drive(
    device: Path, image: Path, is_drive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (
        is_drive
    ):  # this machine has none; a loop device that is bound anew has another number, as a drive with a new disc
        monkeypatch.setattr(block, "SCSI_CDROM_MAJOR", LOOP_MAJOR)
    rdev = device.stat().st_rdev
    diskseq = int(Path(f"/sys/block/{device.name}/diskseq").read_text())
    claim = BlockClaim(
        guest="vm", target="hdc", path=str(device), rdev=rdev, diskseq=diskseq, read_only=True, shareable=False
    )
    assert block._is_present(claim)
    bind_anew(device, image)
    assert block._is_present(claim) is is_drive
