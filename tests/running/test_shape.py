"""Slices, sector sizes and startupPolicy against a running agent, with data."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.workbench import Bench

MIB = 1 << 20
DRIVERS = ["name='loop'", "name='tap2' type='aio'"]


def disk(driver: str, source: Path, inside: str = "", more: str = "", attributes: str = "") -> str:
    source_element = f"<source file='{source}' {attributes}>{inside}</source>"
    return f"<disk type='file'><driver {driver}/>{source_element}<target dev='vda'/>{more}</disk>"


def part(offset: int, size: int) -> str:
    return f"<slices><slice type='storage' offset='{offset}' size='{size}'/></slices>"


def write(path: Path, data: bytes) -> None:
    with path.open("r+b", buffering=0) as device:
        device.write(data)
        os.fsync(device.fileno())


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_slice_of_a_raw_image_is_the_whole_disk(host: Bench, driver: str) -> None:
    guest, image = f"slice-{DRIVERS.index(driver)}", host.image(f"slice-{DRIVERS.index(driver)}.img", 4 * MIB)
    image.write_bytes(b"o" * 4 * MIB)
    host.push_disks(guest, disk(driver, image, part(MIB, 2 * MIB)))
    up = host.until_phase(guest, "vda", "Up")
    assert (up["size_bytes"], up["unhonoured"]) == (2 * MIB, [])
    data = os.urandom(2 * MIB)
    write(host.stable(guest, "vda"), data)
    assert image.read_bytes() == b"o" * MIB + data + b"o" * MIB
    host.push_disks(guest, disk(driver, image, part(2 * MIB, MIB)))
    host.until_status(guest, "vda", phase="Up", size_bytes=MIB)
    assert host.stable(guest, "vda").read_bytes() == data[MIB:]


def test_a_slice_may_hold_an_image_of_another_format(host: Bench) -> None:
    inner, container = host.formatted("inner.qcow2", "qcow2"), host.images / "container"
    container.write_bytes(b"o" * MIB + inner.read_bytes().ljust(4 * MIB, b"\0") + b"o" * MIB)
    host.push_disks("inner", disk("name='tap2' type='qcow2'", container, part(MIB, 4 * MIB)))
    up = host.until_phase("inner", "vda", "Up")
    assert up["size_bytes"] == 8 * MIB
    data = os.urandom(MIB)
    write(host.stable("inner", "vda"), data)
    host.absent("inner")
    host.until_guest("inner", "Down")
    whole = container.read_bytes()
    assert (whole[:MIB], whole[5 * MIB :]) == (b"o" * MIB, b"o" * MIB)
    inner.write_bytes(whole[MIB : 5 * MIB])
    raw = host.images / "inner.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", inner, raw], check=True)
    assert raw.read_bytes()[:MIB] == data


@pytest.mark.parametrize("driver", [*DRIVERS, "name='tap2' type='qcow2'"])
def test_sectors_are_as_large_as_told(host: Bench, driver: str) -> None:
    number = [*DRIVERS, "name='tap2' type='qcow2'"].index(driver)
    guest = f"sectors-{number}"
    image = host.formatted(guest, "qcow2") if number == 2 else host.image(guest, 8 * MIB)
    for size in (4096, 512):
        host.push_disks(guest, disk(driver, image, more=f"<blockio logical_block_size='{size}'/>"))
        host.until_status(guest, "vda", phase="Up", logical_block_size=size, unhonoured=[])
        node = Path(host.disk(guest, "vda")["device_path"]).name
        assert Path(f"/sys/block/{node}/queue/logical_block_size").read_text() == f"{size}\n"
        data = os.urandom(size)
        write(host.stable(guest, "vda"), data)
        assert host.stable(guest, "vda").read_bytes()[:size] == data


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("policy", "phase", "reason"),
    [
        ("mandatory", "Refused", "ImageMissing"),
        ("requisite", "Refused", "ImageMissing"),
        ("optional", "Down", None),
    ],
)
def test_a_missing_image_is_what_startup_policy_says(
    host: Bench, driver: str, policy: str, phase: str, reason: str | None
) -> None:
    guest = f"{policy}-{DRIVERS.index(driver)}"
    host.push_disks(guest, disk(driver, host.images / guest, attributes=f"startupPolicy='{policy}'"))
    missing = host.until_phase(guest, "vda", phase)
    assert (missing["error"] or {}).get("reason") == reason
    host.image(guest)
    host.resync()
    host.until_phase(guest, "vda", "Up")
