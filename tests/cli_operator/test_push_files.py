"""What files come to before they are pushed."""

import os
import sys
from pathlib import Path

import pytest

from agent.cli.push_files import read_definitions
from agent.definition import parse_domain, parse_file
from agent.fleet.order import RefusedError
from agent.settings import Settings

SETTINGS = Settings(host="h")
LARGE = 4 << 20
CONFIGURATIONS = (
    "name = 'web'\ndisk = [ 'tap:qcow2:/i/a,xvda,w', 'file:/i/b,xvdb,r', ',hdc:cdrom,r', 'phy:/dev/vg/c,xvdc,w!' ]\n",
    "(domain (name web)(device (tap (uname tap:aio:/i/a)(dev xvda)(mode w))))",
)


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_a_guest_of_xen_goes_on_the_bus_as_xml_that_means_the_same(tmp_path: Path, text: str) -> None:
    file = tmp_path / "web.cfg"
    file.write_text(text)
    (definition,) = read_definitions([file], SETTINGS)
    assert definition.guest == "web"
    assert definition.xml is not None
    pushed, (written,) = parse_domain(definition.xml.encode()), parse_file(text.encode())
    assert [disk.spec for disk in pushed.disks] == [disk.spec for disk in written.disks]
    assert pushed.complete


def test_a_disk_that_can_not_be_served_is_not_left_out(tmp_path: Path) -> None:
    file = tmp_path / "web.cfg"
    file.write_text("name = 'web'\ndisk = [ 'file:/i/a,xvda,w',\n 'nbd:host:1,xvdb,w' ]\n")
    with pytest.raises(RefusedError, match=r"not every disk can be served\n.*web\.cfg:3: UnsupportedSource"):
        read_definitions([file], SETTINGS)


def test_an_image_that_is_named_by_mistake_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "root.raw"
    image.write_bytes(b"<" * LARGE)
    with pytest.raises(RefusedError, match=r"root\.raw: DocumentTooLarge: the document has more than 262144 bytes"):
        read_definitions([image], SETTINGS)
    with image.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(RefusedError, match="-: DocumentTooLarge: the document has more than 262144 bytes"):
            read_definitions([Path("-")], SETTINGS)
        assert os.lseek(stdin.fileno(), 0, os.SEEK_CUR) < LARGE // 2
