"""Every spelling of a driver in XML, and what serves the disk then."""

import pytest

from tests.definition.samples import disk, reasons

FILE = "<source file='/i/a.img'/><target dev='vda'/>"
BLOCK = "<source dev='/dev/vg/a'/><target dev='vda'/>"

SPELLINGS = [
    # the four forms of the first proposal
    (f"<disk type='blktap:aio'>{FILE}</disk>", "blktap", "aio"),
    (f"<disk type='blktap:qcow'>{FILE}</disk>", "blktap", "qcow"),
    (f"<disk type='file' driver='loop'>{FILE}</disk>", "loop", "raw"),
    (f"<disk type='file' driver='blktap:aio'>{FILE}</disk>", "blktap", "aio"),
    (f"<disk type='file' driver='blktap:qcow'>{FILE}</disk>", "blktap", "qcow"),
    (f"<disk type='file'><driver type='loop'/>{FILE}</disk>", "loop", "raw"),
    (f"<disk type='file'><driver type='blktap:aio'/>{FILE}</disk>", "blktap", "aio"),
    (f"<disk type='file'><driver type='blktap:qcow'/>{FILE}</disk>", "blktap", "qcow"),
    (f"<disk type='file'><driver type='blktap' backend='aio'/>{FILE}</disk>", "blktap", "aio"),
    (f"<disk type='file'><driver type='blktap' backend='qcow'/>{FILE}</disk>", "blktap", "qcow"),
    (f"<disk type='file'><driver type='blktap'/>{FILE}</disk>", "blktap", "aio"),
    # no driver: by type
    (f"<disk>{FILE}</disk>", "loop", "raw"),
    (f"<disk type='file'>{FILE}</disk>", "loop", "raw"),
    (f"<disk type='block'>{BLOCK}</disk>", "block", "raw"),
    (f"<disk type='file'><driver cache='none'/>{FILE}</disk>", "loop", "raw"),
    # libvirt's names
    (f"<disk><driver name='loop'/>{FILE}</disk>", "loop", "raw"),
    (f"<disk><driver name='file'/>{FILE}</disk>", "loop", "raw"),
    (f"<disk type='block'><driver name='file'/>{BLOCK}</disk>", "loop", "raw"),
    (f"<disk type='block'><driver name='phy'/>{BLOCK}</disk>", "block", "raw"),
    (f"<disk type='file'><driver name='phy' type='raw'/>{FILE}</disk>", "block", "raw"),
    *((f"<disk><driver name='{tap}'/>{FILE}</disk>", "blktap", "aio") for tap in ("tap", "tap2", "blktap", "blktap2")),
    (f"<disk><driver name='tap' type='raw'/>{FILE}</disk>", "blktap", "aio"),
    (f"<disk><driver name='tap2' type='aio'/>{FILE}</disk>", "blktap", "aio"),
    (f"<disk type='block'><driver name='tap' type='aio'/>{BLOCK}</disk>", "blktap", "aio"),
    (f"<disk><driver name='tap' type='qcow'/>{FILE}</disk>", "blktap", "qcow"),
    (f"<disk><driver name='tap' type='vpc'/>{FILE}</disk>", "blktap", "vhd"),
    (f"<disk><driver name='qemu'/>{FILE}</disk>", "loop", "raw"),
    (f"<disk><driver name='qemu' type='raw'/>{FILE}</disk>", "loop", "raw"),
    (f"<disk type='block'><driver name='qemu' type='raw'/>{BLOCK}</disk>", "block", "raw"),
    (f"<disk type='block'><driver name='qemu' type='qcow2'/>{BLOCK}</disk>", "blktap", "qcow2"),
    *(
        (f"<disk><driver name='qemu' type='{image}'/>{FILE}</disk>", "blktap", image)
        for image in ("qcow", "qcow2", "vhd", "vhdx", "vmdk", "vdi", "qed")
    ),
    # a format without a driver is never dropped
    (f"<disk><driver type='qcow2'/>{FILE}</disk>", "blktap", "qcow2"),
    (f"<disk><driver type='vpc'/>{FILE}</disk>", "blktap", "vhd"),
    (f"<disk><driver type='aio'/>{FILE}</disk>", "blktap", "aio"),
    (f"<disk><driver type='raw'/>{FILE}</disk>", "loop", "raw"),
    # an empty attribute is an absent one
    (f"<disk type='' driver=''><driver name='' type=''/>{FILE}</disk>", "loop", "raw"),
    # Xen's strings in XML
    ("<disk><source file='tap:aio:/i/a.img'/><target dev='vda'/></disk>", "blktap", "aio"),
    ("<disk><source file='tap:tapdisk:qcow:/i/a.img'/><target dev='vda'/></disk>", "blktap", "qcow"),
    ("<disk><source file='file:/i/a.img'/><target dev='vda'/></disk>", "loop", "raw"),
    ("<disk type='block'><source dev='phy:/dev/vg/a'/><target dev='vda'/></disk>", "block", "raw"),
    (
        "<disk><driver name='tap' type='aio'/><source file='tap:aio:/i/a.img'/><target dev='vda'/></disk>",
        "blktap",
        "aio",
    ),
]


@pytest.mark.parametrize(("xml", "backend", "image"), SPELLINGS)
def test_spelling(xml: str, backend: str, image: str) -> None:
    found = disk(xml)
    assert reasons(found) == []
    assert (found.backend, found.format) == (backend, image)
    assert found.source in {"/i/a.img", "/dev/vg/a"}
    assert found.spec is not None
    assert (found.spec.backend, found.spec.format, found.spec.source) == (backend, image, found.source)


@pytest.mark.parametrize(
    ("xml", "reason", "named"),
    [
        (f"<disk><driver name='file' type='qcow2'/>{FILE}</disk>", "ConflictingDriver", "'file' serves raw"),
        (f"<disk><driver name='phy' type='vhd'/>{FILE}</disk>", "ConflictingDriver", "'vhd'"),
        (f"<disk driver='loop'><driver name='tap'/>{FILE}</disk>", "ConflictingDriver", "'loop' and 'tap'"),
        (f"<disk type='blktap:aio'><driver name='qemu' type='qcow2'/>{FILE}</disk>", "ConflictingDriver", "'qcow2'"),
        (f"<disk><driver name='lsilogic'/>{FILE}</disk>", "UnknownDriver", "'lsilogic' is not known; use one of loop"),
        (f"<disk driver='blktap:zfs'>{FILE}</disk>", "UnknownDriver", "'zfs'"),
        (f"<disk><driver name='qemu' type='QCOW2'/>{FILE}</disk>", "UnknownFormat", "'QCOW2' is not known"),
        (f"<disk><driver name='qemu' type='cow'/>{FILE}</disk>", "FormatUnsupported", "qemu-img convert"),
        (f"<disk><driver type='auto'/>{FILE}</disk>", "FormatUnsupported", "never probed"),
        (f"<disk type='floppy'>{FILE}</disk>", "InvalidValue", "use file or block"),
    ],
)
def test_a_driver_that_is_not_clear_is_refused(xml: str, reason: str, named: str) -> None:
    found = disk(xml)
    assert reasons(found) == [reason]
    assert named in found.refused[0].message
    assert found.spec is None
