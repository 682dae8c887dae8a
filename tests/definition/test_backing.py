"""Backing chains in definitions: every layer is declared with its format, or the disk is refused."""

import pytest

from agent.definition import Limits, parse_domain
from agent.definition.canonical import canonical
from agent.definition.model import DiskDefinition
from reconcilers.spec import Format, Layer
from tests.definition.samples import domain


def layer(path: str, form: str, inside: str = "<backingStore/>", attributes: str = "type='file'") -> str:
    return f"<backingStore {attributes}><format type='{form}'/><source file='{path}'/>{inside}</backingStore>"


def disk(chain: str, driver: str = "name='qemu' type='qcow2'") -> DiskDefinition:
    text = f"<disk type='file'><driver {driver}/><source file='/i/top'/>{chain}<target dev='vda'/></disk>"
    return parse_domain(domain(text)).disks[0]


def test_a_chain_is_read_from_top_to_bottom() -> None:
    found = disk(layer("/i/a", "qcow2", layer("/i/b", "qcow", layer("/i/c", "raw"))))
    assert found.spec
    assert found.spec.chain == (
        Layer("/i/a", Format.QCOW2),
        Layer("/i/b", Format.QCOW),
        Layer("/i/c", Format.AIO),
    )
    assert "backingStore" in found.honoured
    guest = parse_domain(canonical(parse_domain(domain("<disk/>"))).replace(b"<devices/>", b""))
    assert guest.disks == ()


def test_what_is_read_is_written_in_canonical_form() -> None:
    text = (
        f"<disk><driver name='tap2' type='qed'/><source file='/i/t'/>{layer('/i/a', 'vpc')}<target dev='vda'/></disk>"
    )
    guest = parse_domain(domain(text))
    again = parse_domain(canonical(guest))
    assert [one.spec for one in again.disks] == [one.spec for one in guest.disks]
    assert canonical(again) == canonical(guest)


def test_as_virsh_dumpxml_prints_it() -> None:
    inside = "<privateData/><backingStore/>"
    chain = layer("/i/a", "qcow2", inside, "type='file' index='2'").replace("'/i/a'", "'/i/a' index='9'")
    found = disk(chain.replace("<format type='qcow2'/>", "<format type='qcow2'><metadata_cache/></format>"))
    assert found.spec
    assert found.spec.chain == (Layer("/i/a", Format.QCOW2),)


def test_an_empty_one_is_no_layer() -> None:
    for empty in ("<backingStore/>", "<backingStore></backingStore>", ""):
        found = disk(empty)
        assert found.spec
        assert found.spec.chain == ()


SOURCE = "<format type='qcow2'/><source file='/i/a'>{}</source>"


@pytest.mark.parametrize(
    ("chain", "driver", "reason", "path"),
    [
        (layer("/i/a", "raw"), "name='qemu' type='raw'", "UnsupportedFeature", ""),
        (layer("/i/a", "raw"), "name='loop'", "UnsupportedFeature", ""),
        (layer("/i/a", "raw"), "name='tap2' type='vhd'", "UnsupportedFeature", ""),
        (layer("/i/a", "raw", layer("/i/b", "qcow2")), None, "UnsupportedFeature", ""),
        (layer("/i/a", "vmdk", layer("/i/b", "qcow2")), None, "UnsupportedFeature", ""),
        (layer("/i/a", "nonsense"), None, "UnknownFormat", ""),
        (layer("/i/a", "auto"), None, "FormatUnsupported", ""),
        (layer("/i/a", "tap:qcow2"), None, "UnknownFormat", ""),
        (layer("/i/a", ""), None, "MissingSource", ""),
        (layer("", "qcow2"), None, "MissingSource", ""),
        ("<backingStore type='file'><source file='/i/a'/></backingStore>", None, "MissingSource", ""),
        ("<backingStore type='file'><format type='raw'/></backingStore>", None, "MissingSource", ""),
        (layer("i/a", "qcow2"), None, "InvalidSource", ""),
        (layer("/i/../etc/shadow", "raw"), None, "InvalidSource", ""),
        (layer("/i/a&#10;b", "raw"), None, "InvalidSource", ""),
        (layer("json:{}", "raw"), None, "InvalidSource", ""),
        (layer("nbd://127.0.0.1/x", "raw"), None, "InvalidSource", ""),
        (layer("/i/a", "raw", attributes="type='network'"), None, "UnsupportedFeature", "/@type"),
        (layer("/i/a", "raw", attributes="type='block'"), None, "UnsupportedFeature", "/@type"),
        (layer("/i/a", "qcow2", "<encryption format='luks'/>"), None, "UnsupportedFeature", "/encryption"),
        (layer("/i/a", "qcow2", "<dataStore/>"), None, "UnsupportedFeature", "/dataStore"),
        (layer("/i/a", "qcow2", "<source file='/etc/shadow'/>"), None, "UnsupportedFeature", "/source"),
        (layer("/i/a", "qcow2", "<backingStore/><backingStore/>"), None, "UnsupportedFeature", "/backingStore"),
        (
            f"<backingStore type='file'>{SOURCE.format('<slices/>')}</backingStore>",
            None,
            "UnsupportedFeature",
            "/source/slices",
        ),
        (layer("/i/a", "qcow2") + layer("/i/b", "qcow2"), None, "UnsupportedFeature", ""),
    ],
)
def test_what_is_refused(chain: str, driver: str | None, reason: str, path: str) -> None:
    found = disk(chain, driver or "name='qemu' type='qcow2'")
    assert found.spec is None
    assert reason in [finding.reason for finding in found.refused]
    assert f"/domain/devices/disk[1]/backingStore{path}" in [finding.path for finding in found.refused]


@pytest.mark.parametrize(("depth", "fine"), [(8, True), (9, False), (40, False)])
def test_no_deeper_than_the_limit(depth: int, fine: bool) -> None:
    chain = "<backingStore/>"
    for number in range(depth):
        chain = layer(f"/i/{number}", "qcow2", chain)
    found = disk(chain)
    assert bool(found.spec) is fine
    text = f"<disk><driver type='qcow2'/><source file='/i/t'/>{layer('/i/a', 'raw')}<target dev='vda'/></disk>"
    assert parse_domain(domain(text), limits=Limits(max_layers=0)).disks[0].spec is None
