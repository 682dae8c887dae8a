"""Hostile images through the whole chain, while somebody watches what is opened and where anybody calls."""

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconcilers.spec import Format
from tests.images.makers import create, patch, put, vhd_dynamic, vhd_fixed
from tests.images.watching import Watch, watched
from tests.workbench import Bench, loop_disk, tap_disk

XINCLUDE = "xmlns:xi='http://www.w3.org/2001/XInclude'"
SCHEMA = "xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance' xsi:noNamespaceSchemaLocation"
SECRET = b"the secret of another tenant" * 64


@pytest.fixture
def victims(bench: Bench) -> dict[str, Path]:
    """What an attacker would like to be opened: a host's file, another tenant's image, an image in another pool."""
    files = {
        "host": bench.folder / "shadow",
        "tenant": bench.images / "tenant.img",
        "base": bench.images / "base.qcow2",
        "elsewhere": bench.elsewhere / "other.img",
    }
    bench.elsewhere.mkdir(exist_ok=True)
    for file in files.values():
        file.write_bytes(SECRET)
    create(files["base"], Format.QCOW2)
    return files


@pytest.fixture
def watch(bench: Bench, victims: dict[str, Path]) -> Iterator[tuple[Watch, int]]:
    with watched(list(victims.values()), bench.folder / "nbd.sock") as both:
        yield both


def names(bench: Bench, victims: dict[str, Path], port: int) -> list[str]:
    """How a header might name them."""
    inner = [{"driver": "raw", "file": {"driver": "file", "filename": str(file)}} for file in victims.values()]
    return [
        *map(str, victims.values()),
        *(file.name for file in victims.values()),
        *(f"../{file.parent.name}/{file.name}" for file in victims.values()),
        *(f"file:{file}" for file in victims.values()),
        *(f"json:{json.dumps(node)}" for node in inner),
        f"nbd://127.0.0.1:{port}/x",
        f"nbd+unix:///x?socket={bench.folder}/nbd.sock",
        f"nbd:127.0.0.1:{port}",
        f"http://127.0.0.1:{port}/x",
        f"ftp://127.0.0.1:{port}/x",
        f"ssh://127.0.0.1:{port}/x",
        "json:" + json.dumps({"driver": "nbd", "server": {"type": "inet", "host": "127.0.0.1", "port": str(port)}}),
        f"fat:rw:{victims['host'].parent}",
        f"blkverify:{victims['host']}:{victims['tenant']}",
    ]


def hostile(bench: Bench, victims: dict[str, Path], port: int) -> Iterator[tuple[Path, str]]:
    """Images that name them, each with the format that it would be declared with."""
    for number, name in enumerate(names(bench, victims, port)):
        data = name.encode()
        qcow2 = create(bench.images / f"{number}.qcow2", Format.QCOW2)
        patch(qcow2, 1024, data)
        put(">QI", 8, 1024, len(data))(qcow2)
        yield qcow2, "qcow2"
        thin = create(bench.images / f"{number}.thin.qcow2", Format.QCOW2)
        patch(thin, 112, struct.pack(">II", 0x44415441, len(data)) + data + bytes(16))
        put(">Q", 72, 4)(thin)
        yield thin, "qcow2"
        qcow = create(bench.images / f"{number}.qcow", Format.QCOW)
        patch(qcow, qcow.stat().st_size, data)
        put(">QI", 8, qcow.stat().st_size - len(data), len(data))(qcow)
        yield qcow, "qcow"
        qed = create(bench.images / f"{number}.qed", Format.QED)
        patch(qed, 64, data)
        put("<Q", 16, 1)(qed)
        put("<II", 56, 64, len(data))(qed)
        yield qed, "qed"
        vmdk = create(bench.images / f"{number}.vmdk", Format.VMDK)
        text = vmdk.read_bytes()[512:10752].partition(b"\0")[0]
        patch(vmdk, 512, text + f'parentFileNameHint="{name}"\n'.encode())
        yield vmdk, "vmdk"
        flat = create(bench.images / f"{number}.flat.vmdk", Format.VMDK)
        lines = [f'RW 16384 FLAT "{name}" 0' if line.startswith("RW") else line for line in text.decode().splitlines()]
        patch(flat, 512, "\n".join(lines).encode().ljust(20 * 512, b"\0"))
        put("<Q", 12, 0)(flat)
        yield flat, "vmdk"


def test_the_watch_would_tell(watch: tuple[Watch, int], victims: dict[str, Path], bench: Bench) -> None:
    """Without our defences: what qemu-img does with such an image when it is left to itself."""
    seen, port = watch
    for name in (str(victims["host"]), f"nbd://127.0.0.1:{port}/x", f"nbd+unix:///x?socket={bench.folder}/nbd.sock"):
        image = create(bench.images / "control.qcow2", Format.QCOW2)
        data = name.encode()
        patch(image, 1024, data)
        put(">QI", 8, 1024, len(data))(image)
        subprocess.run(["qemu-io", "-r", "-c", "read 0 512", image], check=False, capture_output=True)
        assert seen.seen(), name


def test_nothing_that_an_image_names_is_opened_or_called(
    bench: Bench, victims: dict[str, Path], watch: tuple[Watch, int]
) -> None:
    seen, port = watch
    images = list(hostile(bench, victims, port))
    seen.seen()
    for number, (image, fmt) in enumerate(images):
        bench.push_disks(f"hostile-{number}", tap_disk("vda", image, fmt))
    for number, (image, fmt) in enumerate(images):
        disk = bench.until_phase(f"hostile-{number}", "vda", "Refused")
        expected = {"BackingUndeclared"} | ({"ImageDamaged"} if image.name.endswith(".flat.vmdk") else set())
        assert disk["error"]["reason"] in expected, (image, fmt)
    assert seen.seen() == []
    assert bench.servers() == []


def test_nothing_is_opened_for_what_is_served_as_raw(
    bench: Bench, victims: dict[str, Path], watch: tuple[Watch, int]
) -> None:
    seen, port = watch
    images = [image for image, _ in hostile(bench, victims, port)][::7]
    for number, image in enumerate(images):
        os.truncate(image, 1 << 20)
        content = image.read_bytes()
        for kind in (loop_disk("vda", image), tap_disk("vda", image)):
            bench.push_disks(f"raw-{number}", kind)
            bench.until_guest(f"raw-{number}", "Up")
            assert bench.stable(f"raw-{number}", "vda").read_bytes() == content
            bench.absent(f"raw-{number}")
            bench.until_guest(f"raw-{number}", "Down")
    parent = str(victims["host"]).encode("utf-16-be")
    planted = vhd_dynamic(bench.images / "planted", kind=4, parent=parent).read_bytes().ljust(1 << 20, b"\0")
    bench.push_disks("fixed", tap_disk("vda", vhd_fixed(bench.images / "fixed.vhd", planted), "vhd"))
    bench.until_guest("fixed", "Up")
    assert bench.stable("fixed", "vda").read_bytes() == planted
    assert seen.seen() == []


def test_nothing_that_a_definition_names_is_opened_or_called(
    bench: Bench, victims: dict[str, Path], watch: tuple[Watch, int]
) -> None:
    seen, port = watch
    host, url = victims["host"], f"http://127.0.0.1:{port}/x"
    disk = loop_disk("vda", bench.image("a.img"))
    plain = f"<domain><name>NAME</name><devices>{disk}</devices></domain>"
    entity = plain.replace("NAME", "&x;")
    documents = [
        *(f"<!DOCTYPE domain [<!ENTITY x SYSTEM '{name}'>]>{entity}" for name in (host, url, f"file://{host}")),
        *(f"<!DOCTYPE domain SYSTEM '{name}'>{plain}" for name in (host, url)),
        *(f"<!DOCTYPE domain [<!ENTITY % p SYSTEM '{name}'> %p;]>{plain}" for name in (host, url)),
        *(plain.replace("</devices>", f"<xi:include {XINCLUDE} href='{name}'/></devices>") for name in (host, url)),
        *(f"<?xml-stylesheet href='{name}'?>{plain}" for name in (host, url)),
        plain.replace("<domain>", f"<domain {SCHEMA}='{url}'>"),
        plain.replace(str(bench.images / "a.img"), str(host)),
        plain.replace(str(bench.images / "a.img"), f"{bench.images}/../{host.name}"),
        plain.replace(str(bench.images / "a.img"), url),
        plain.replace(str(bench.images / "a.img"), f"nbd+unix:///x?socket={bench.folder}/nbd.sock"),
    ]
    for number, document in enumerate(documents):
        bench.push(f"doc-{number}", document.replace("NAME", f"doc-{number}"))
    settled = {"Up", "Refused"}
    bench.until(lambda: {bench.statuses.get(f"doc-{n}", {}).get("phase") for n in range(len(documents))} <= settled)
    assert seen.seen() == []
