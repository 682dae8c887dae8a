"""How a tap serves its disk, for the status."""

from urllib.parse import quote

from reconcilers.actual import TapFacts
from reconcilers.blktap.kinds import DeviceKind
from reconcilers.blktap.nodes import EXPORT
from reconcilers.blktap.tap import TapFolder, TapRecord
from reconcilers.tuning import Cache


def facts_of(tap: TapFolder, record: TapRecord, *, alive: bool) -> TapFacts:
    """What the status tells of a tap whose server is `alive`, or was."""
    return TapFacts(
        server=record.server_kind,
        device=record.device_kind,
        export=_export(tap, record.device_kind),
        process_id=tap.noted_process_id() if alive else None,
        unit=tap.unit() if alive else None,
        flushes=record.tuning.cache is not Cache.UNSAFE,
        takes_limits=record.takes_limits,
    )


def _export(tap: TapFolder, device: DeviceKind) -> str:
    match device:
        case DeviceKind.FUSE_LOOP:
            return str(tap.export)
        case DeviceKind.NBD:
            return str(tap.nbd)
        case DeviceKind.NBD_SOCKET:
            return f"nbd+unix:///{EXPORT}?socket={quote(str(tap.socket))}"  # doc/uri.md of the NBD project
