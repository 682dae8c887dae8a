"""What becomes of every attribute and child of `<disk>`: the one table, which the README's is made from.

The names are those of libvirt's schema (https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms),
relative to `<disk>`; a name that is not here is reported as unknown.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from reconcilers.honour import Feature
from reconcilers.tuning import LIMITS


class Handling(StrEnum):
    """Who acts on a part of the definition."""

    HONOURED = "honoured"
    PASSED = "passed"
    UNHONOURED = "unhonoured"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Row:
    """One attribute (`driver/@cache`) or child (`readonly`, `iotune`).

    Attributes:
        name: Path relative to `<disk>`.
        handling: What becomes of it.
        remark: What the agent does with it, or why it does not.
        whole: Everything below it shares its fate and is not listed one by one.
    """

    name: str
    handling: Handling
    remark: str
    whole: bool = False


def _honoured(name: str, remark: str, *, whole: bool = False) -> Row:
    return Row(name, Handling.HONOURED, remark, whole)


def _unhonoured(name: str, remark: str, *, whole: bool = False) -> Row:
    return Row(name, Handling.UNHONOURED, remark, whole)


def _refused(name: str, remark: str) -> Row:
    return Row(name, Handling.REFUSED, remark, whole=True)


def _passed(remark: str, *names: str) -> tuple[Row, ...]:
    return tuple(Row(name, Handling.PASSED, remark, whole="@" not in name) for name in names)


_ROWS = (
    _honoured("@type", "file or block, or a blktap spelling; all other types are refused"),
    _honoured("@device", "disk, cdrom (always read-only), floppy, or lun (block devices only)"),
    _honoured("@driver", "a driver spelling: loop, blktap:aio, blktap:qcow …"),
    _honoured("driver/@name", "the driver, see the driver table"),
    _honoured("driver/@type", "the image's format, see the driver table"),
    _honoured("driver/@backend", "the format under <driver type='blktap'>"),
    _honoured(
        "driver/@cache", "blktap: all; loop: writeback, and none, which bypasses the host's cache where that is safe"
    ),
    _honoured(
        "driver/@io", "blktap: all, native with cache none or directsync; loop: native with cache none, else threads"
    ),
    _honoured(
        "driver/@discard",
        "loop, blktap (QEMU before 8.0: raw files only): what is discarded is given back, unless ignore",
    ),
    _honoured(
        "driver/@detect_zeroes",
        "blktap: whether zeroes are looked for in what is written; unmap is on without discard='unmap'",
    ),
    *(
        _honoured(f"iotune/{name}", "blktap: a limit of the disk's own, with which 1 MiB takes 16 s at most")
        for name in LIMITS
    ),
    _honoured("source/@file", "the image"),
    _honoured("source/@dev", "the block device"),
    _honoured("source/@startupPolicy", "what a missing image means"),
    _honoured("source/slices", "the part of the source that is the disk", whole=True),
    _honoured(
        "backingStore",
        "the images below, each a file with its format; an empty one is the end of the chain",
        whole=True,
    ),
    _honoured("target/@dev", "names the disk and its stable path"),
    _honoured("readonly", "no write reaches the source"),
    _honoured("shareable", "other guests that say so too may use the source; raw, where it is writable"),
    _honoured("blockio/@logical_block_size", "bytes per sector: 512, 1024, 2048 or 4096"),
    _unhonoured("blockio/@physical_block_size", "the backend reports its own"),
    _unhonoured("blockio/@discard_granularity", "the backend reports its own"),
    _unhonoured("driver/@discard_no_unref", "the server's default applies"),
    _unhonoured("driver/metadata_cache", "the server's default applies", whole=True),
    _unhonoured("iotune/group_name", "each disk has a server of its own, and no limit that others share"),
    _refused("transient", "writes would be kept although they are to be thrown away"),
    _refused("mirror", "a block job is copying the disk elsewhere"),
    _refused("encryption", "the guest would see ciphertext and overwrite it"),
    _refused("source/encryption", "the guest would see ciphertext and overwrite it"),
    _refused("source/dataStore", "the guest's data is in another file"),
    _refused("source/reservations", "persistent reservations protect the source from other hosts"),
    _refused("source/@fdgroup", "the image is a descriptor handed to libvirt, not a path"),
    _refused("backenddomain", "another domain than dom0 has the disk"),
    _refused("script", "a hotplug script other than block gives the source another meaning"),
    *_passed("how libvirt manages the guest", "@snapshot", "@rawio", "@sgio", "alias", "privateData"),
    *_passed("what the guest sees", "@model", "address", "acpi", "boot", "geometry", "serial", "wwn"),
    *_passed("what the guest sees", "vendor", "product", "target/@bus", "target/@tray", "target/@removable"),
    *_passed("what the guest sees", "target/@rotation_rate", "target/@dpofua"),
    *_passed("the hypervisor's device", "driver/@error_policy", "driver/@rerror_policy", "driver/@ioeventfd"),
    *_passed("the hypervisor's device", "driver/@event_idx", "driver/@copy_on_read", "driver/@iothread"),
    *_passed("the hypervisor's device", "driver/@queues", "driver/@queue_size", "driver/@iommu", "driver/@ats"),
    *_passed("the hypervisor's device", "driver/@packed", "driver/@page_per_vq", "driver/iothreads"),
    *_passed("the hypervisor's device", "driver/statistics", "throttlefilters"),
    *_passed(
        "libvirt's bookkeeping", "source/@index", "source/privateData", "source/@tlsFromConfig", "diskSecretsPlacement"
    ),
    *_passed("security labels are the hypervisor's", "source/seclabel"),
    *_passed("network sources only", "auth", "source/auth", "source/@protocol", "source/@name", "source/host"),
    *_passed("network sources only", "source/@query", "source/@tls", "source/@tlsHostname", "source/initiator"),
    *_passed("network sources only", "source/snapshot", "source/config", "source/cookies", "source/ssl"),
    *_passed("network sources only", "source/readahead", "source/timeout", "source/reconnect"),
    *_passed("network sources only", "source/identity", "source/knownHosts"),
    *_passed("other source types only", "source/@pool", "source/@volume", "source/@mode", "source/@dir"),
    *_passed("other source types only", "source/@type", "source/@namespace", "source/@managed", "source/@path"),
    *_passed("other source types only", "source/address"),
)

TABLE = {row.name: row for row in _ROWS}
"""Every row by its name."""

STRUCTURE = frozenset({"driver", "source", "target", "blockio", "iotune"})
"""Children that are listed by what is in them."""


_FEATURES = {
    "driver/@cache": Feature.CACHE,
    "driver/@io": Feature.IO,
    "driver/@discard": Feature.DISCARD,
    "discard": Feature.DISCARD,
    "no-discard": Feature.DISCARD,
    "driver/@detect_zeroes": Feature.DETECT_ZEROES,
    "readonly": Feature.READ_ONLY,
    "blockio/@logical_block_size": Feature.BLOCK_SIZE,
    **dict.fromkeys((f"iotune/{name}" for name in LIMITS), Feature.LIMITS),
}
"""What is honoured by some backends only, in libvirt's words and in xl's."""


def names_of(features: Collection[Feature], names: Iterable[str]) -> list[str]:
    """Those of `names` that ask for one of `features`."""
    return [name for name in names if _FEATURES.get(name) in features] if features else []


def classification_table() -> list[Row]:
    """Every row, in the order that a reader of the README wants: honoured first."""
    return list(_ROWS)


def classification_markdown() -> str:
    """The table as the README shows it: one line for each handling and remark."""
    groups: dict[tuple[Handling, str], list[str]] = {}
    for row in _ROWS:
        groups.setdefault((row.handling, row.remark), []).append(f"`{row.name}`")
    lines = [f"| {', '.join(names)} | {handling} | {remark} |" for (handling, remark), names in groups.items()]
    return "\n".join(["| attribute or child of `<disk>` | | what the agent does |", "| --- | --- | --- |", *lines])
