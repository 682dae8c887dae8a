"""The graph of block nodes in a storage daemon, from the image up to the export. Pure.

    image -> slice -> format -> limits -> no-holes -> export
                         |
         image-1 -> format-1
                         |
         image-2 -> format-2 ...

Limits are always there but in a relay, so that they can come and go while a disk is in use. Slice and no-holes are
there where they are needed; format-1 and those below it, where there is a backing chain. See BlockdevOptions in the
QEMU QMP reference.
"""

import errno
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from reconcilers.blktap.kinds import DeviceKind
from reconcilers.blktap.tap import TapRecord
from reconcilers.spec import Format
from reconcilers.tuning import Cache, Limits

EXPORT = "disk"
LIMITS_PATH = "/objects/limits"

DRIVERS = {
    Format.AIO: "raw",
    Format.QCOW: "qcow",
    Format.QCOW2: "qcow2",
    Format.QED: "qed",
    Format.VDI: "vdi",
    Format.VHD: "vpc",
    Format.VHDX: "vhdx",
    Format.VMDK: "vmdk",
}
"""QEMU's name of each format's driver."""

# Those that could name a backing file are told that there is none, whatever their header says.
_CAN_NAME_BACKING = {Format.QCOW, Format.QCOW2, Format.QED, Format.VMDK}

# With ENOSYS the kernel punches no more holes into the export, nor zeroes ranges of it: it writes zeroes itself.
_REFUSALS = [
    {"event": "none", "iotype": iotype, "errno": errno.ENOSYS, "once": False} for iotype in ("discard", "write-zeroes")
]

_PROTOCOLS = {"file", "host_device"}
_OUR_FILE = re.compile(r"/proc/self/fd/\d+")

Node = dict[str, object]


def node_arguments(record: TapRecord, image_fds: Sequence[int]) -> list[str]:
    """Options that make the nodes and what they need, in the order that the daemon wants.

    Args:
        record: What is to be served.
        image_fds: The image's descriptor as the daemon has it, then those of the images below it. None for a relay.
    """
    group = {"qom-type": "throttle-group", "id": "limits", "limits": throttle(record.tuning.limits)}
    objects = ["--object", json.dumps(group)] if record.takes_limits else []
    return objects + [word for node in _nodes(record, image_fds) for word in ("--blockdev", json.dumps(node))]


def strangers(record: TapRecord, found: Iterable[Mapping[str, object]]) -> Iterator[str]:
    """What a server has open that it was not given, or does not have that it was; in words.

    Args:
        record: What it shall serve.
        found: The answer to `query-named-block-nodes`.
    """
    given = {str(node["node-name"]): node["driver"] for node in _nodes(record, range(1 + len(record.below)))}
    for node in found:
        name, driver, file = str(node.get("node-name")), node.get("drv"), str(node.get("file"))
        if given.pop(name, None) != driver:
            yield f"node {name} ({driver}, {file})"
        elif driver in _PROTOCOLS and not _OUR_FILE.fullmatch(file):
            yield f"{driver} {file}"
    yield from (f"no node {name}" for name in given)


def export_arguments(record: TapRecord, mount_point: Path, nbd_listener: int) -> list[str]:
    """Options that export the topmost node in the way that the tap's device needs.

    Args:
        record: What is to be served.
        mount_point: Of a FUSE export.
        nbd_listener: The descriptor of a listening socket as the daemon has it.
    """
    export: Node = {
        "id": EXPORT,
        "node-name": top(record),
        "writable": not record.read_only,
        "writethrough": record.tuning.cache.through,
    }
    if record.device_kind is DeviceKind.FUSE_LOOP:
        # To FUSE, others are those of the server's user namespace, and the agent is none of them: it has the same user.
        fuse = {"type": "fuse", "mountpoint": str(mount_point), "allow-other": "off"}
        return ["--export", json.dumps(export | fuse)]
    # A disk is one guest's: a second client waits until the first has gone. The kernel's connection is the agent's own.
    most = ",max-connections=1" if record.device_kind is DeviceKind.NBD_SOCKET else ""
    listener = f"addr.type=fd,addr.str={nbd_listener}{most}"
    return ["--nbd-server", listener, "--export", json.dumps(export | {"type": "nbd", "name": EXPORT})]


def throttle(limits: Limits) -> dict[str, int]:
    """ThrottleLimits in QEMU's names, all of them: those that are not given are none."""
    given = {_qemu_name(name): value for name, value in limits}
    whole = {f"{what}-{which}": 0 for what in ("bps", "iops") for which in ("total", "read", "write")}
    peaks = {f"{name}-max": 0 for name in whole}
    lengths = {f"{name}-max-length": 1 for name in whole}  # QEMU's default, and without a peak nothing else is accepted
    return whole | peaks | lengths | {"iops-size": 0} | given


def _qemu_name(name: str) -> str:
    """`total_bytes_sec_max` is bps-total-max."""
    if name == "size_iops_sec":
        return "iops-size"
    which, what, _, *peak = name.split("_")
    return "-".join(["bps" if what == "bytes" else "iops", which, *peak])


def _nodes(record: TapRecord, image_fds: Sequence[int]) -> list[Node]:
    nodes = [*_lower(record, image_fds[1:]), _image(record, image_fds), *_slice(record), _format(record)]
    if record.takes_limits:
        nodes.append({"driver": "throttle", "throttle-group": "limits", "node-name": "limits", "file": "format"})
    if _refuses_holes(record):
        below = "limits" if record.takes_limits else "format"
        nodes.append({"driver": "blkdebug", "inject-error": _REFUSALS, "node-name": "no-holes", "image": below})
    return [{"read-only": record.read_only, "discard": "unmap"} | node for node in nodes]


def top(record: TapRecord) -> str:
    """The name of the node that is exported."""
    if _refuses_holes(record):
        return "no-holes"
    return "limits" if record.takes_limits else "format"


def _refuses_holes(record: TapRecord) -> bool:
    # Over NBD a discard is a mere hint, and a node that is told to ignore it does so without an error.
    return record.device_kind is DeviceKind.FUSE_LOOP and not record.tuning.discard


def _lower(record: TapRecord, fds: Sequence[int]) -> list[Node]:
    """The nodes of the images below, the lowest first: each is there before another stands on it."""
    nodes: list[Node] = []
    for number, (layer, fd) in reversed(list(enumerate(zip(record.below, fds, strict=True), 1))):
        image, last = f"image-{number}", number == len(record.below)
        file = {"driver": "file", "node-name": image, "filename": f"/proc/self/fd/{fd}", "locking": "off"}
        raw = {} if layer.raw_size is None else {"offset": 0, "size": layer.raw_size}
        node: Node = {"driver": "raw" if raw else DRIVERS[layer.format], "node-name": f"format-{number}", "file": image}
        if layer.format in _CAN_NAME_BACKING:
            node["backing"] = None if last else f"format-{number + 1}"
        nodes += [file | {"read-only": True}, node | raw | {"read-only": True}]
    return nodes


def _image(record: TapRecord, image_fds: Sequence[int]) -> Node:
    if record.relays:
        return {"driver": "nbd", "node-name": "image", "server": {"type": "unix", "path": record.relays}}
    return {
        "driver": "host_device" if record.on_block_device else "file",
        "node-name": "image",
        "filename": f"/proc/self/fd/{image_fds[0]}",
        "locking": "off",  # the inherited descriptor has the locks, and QEMU's own would clash with them
        "discard": _discard(record),
        "aio": record.tuning.io,
        "cache": {"direct": record.tuning.cache.direct, "no-flush": record.tuning.cache is Cache.UNSAFE},
    }


def _sliced(record: TapRecord) -> bool:
    return bool(record.slice_offset) or record.slice_size is not None


def _slice(record: TapRecord) -> list[Node]:
    if not _sliced(record):
        return []
    size = {} if record.slice_size is None else {"size": record.slice_size}
    node = {"driver": "raw", "node-name": "slice", "file": "image", "offset": record.slice_offset}
    return [node | size | {"discard": _discard(record)}]


def _format(record: TapRecord) -> Node:
    raw = {} if record.raw_size is None else {"offset": 0, "size": record.raw_size}
    node: Node = {
        "driver": "raw" if raw else DRIVERS[record.format],
        "node-name": "format",
        "file": "slice" if _sliced(record) else "image",
        "discard": _discard(record),
        "detect-zeroes": record.tuning.detect_zeroes,
    }
    below = "format-1" if record.below else None
    return node | raw | ({"backing": below} if record.format in _CAN_NAME_BACKING else {})


def _discard(record: TapRecord) -> str:
    # As asked, not as granted: zeroes that the server itself finds are unmapped even where discards are not passed on.
    return "unmap" if record.asked.discard else "ignore"
