"""What the agent says about guests, disks and itself: the shapes of design §3, as pydantic models.

Times are RFC 3339 in UTC, sizes are bytes. `None` means "not known" or "does not apply", never "zero".
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.reason import Reason
from reconcilers.spec import Backend, Device, Format

Size = Annotated[int, Field(ge=0)]


def now() -> datetime:
    """The present moment in UTC, as every status and event carries it."""
    return datetime.now(UTC)


class Phase(StrEnum):
    """Where a disk or a guest stands. A guest shows the phase of its worst disk."""

    PENDING = "Pending"
    ATTACHING = "Attaching"
    UP = "Up"
    DEGRADED = "Degraded"
    DETACHING = "Detaching"
    IN_USE = "InUse"
    DOWN = "Down"
    REFUSED = "Refused"
    FAILED = "Failed"
    LOST = "Lost"
    ORPHANED = "Orphaned"
    WITHDRAWN = "Withdrawn"


AT_REST = frozenset({Phase.UP, Phase.DOWN})
"""The phases in which a disk is as its definition wants it."""


class ConditionType(StrEnum):
    """The questions that conditions answer, Kubernetes' way."""

    ACCEPTED = "Accepted"
    READY = "Ready"
    SYNCED = "Synced"
    STORED = "Stored"
    TRUSTED = "Trusted"
    FRESH = "Fresh"


class Status(BaseModel):
    """Base of everything the agent publishes: frozen, and no field beyond the contract."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Condition(Status):
    """One question with its answer, the reason for it and since when it holds."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str
    last_transition_time: AwareDatetime


class Requested(Status):
    """What the definition asks for."""

    backend: Backend | None
    format: Format | None


class Tap(Status):
    """How a tap serves its disk.

    `export` is the mount point of a FUSE file or a unix socket; `unit` is the systemd service that the server runs in;
    without `flushes`, what a guest flushes is on the image's storage only by chance.
    """

    server: ServerKind
    device: DeviceKind
    export: str
    process_id: int | None
    unit: str | None = None
    flushes: bool


class Effective(Status):
    """What serves the disk now. `server` is the kernel for loop, the program and its version for a tap."""

    backend: Backend
    format: Format
    server: str
    tap: Tap | None = None


class DiskError(Status):
    """Why a disk is not up, in a word for programs and a sentence for people."""

    reason: Reason
    message: str


class ProcessHolder(Status):
    """A process that has a disk's device open."""

    pid: int
    name: str


class InUse(Status):
    """Who keeps a disk from going: processes, points where it is mounted, kernel names of devices that stand on it.

    All empty if it is somebody who can't be seen from here: the kernel, or a process in another namespace.
    """

    processes: tuple[ProcessHolder, ...]
    mounts: tuple[str, ...]
    devices: tuple[str, ...]


class Outage(Status):
    """A time in which a disk could not be read and written.

    Attributes:
        began: When it was noticed: at once, but for what happened while no agent ran.
        ended: When it was over; None while it lasts.
        reason: Why, in a word.
        message: Why, in a sentence.
    """

    began: AwareDatetime
    ended: AwareDatetime | None
    reason: Reason
    message: str


class BackingImage(Status):
    """An image below the one that a disk writes to."""

    source: str
    format: Format


class DiskStatus(Status):
    """One disk of a guest. `backing` is what it stands on, the uppermost first."""

    target: str
    device: Device
    phase: Phase
    source: str | None
    backing: tuple[BackingImage, ...] = ()
    requested: Requested
    effective: Effective | None = None
    device_path: str | None = None
    stable_path: str | None = None
    diskseq: int | None = None
    size_bytes: Size | None = None
    logical_block_size: Size | None = None
    read_only: bool
    direct_io: bool | None = None
    in_use: InUse | None = None
    last_outage: Outage | None = None
    since: AwareDatetime
    attempts: Annotated[int, Field(ge=0)] = 0
    next_retry: AwareDatetime | None = None
    error: DiskError | None = None
    unhonoured: tuple[str, ...] = ()


class GuestStatus(Status):
    """One guest on one host: retained on `hosts/<host>/status/guests/<guest>`."""

    guest: str
    host: str
    phase: Phase
    observed_generation: int | None
    sha256: str | None
    conditions: tuple[Condition, ...]
    disks: tuple[DiskStatus, ...]


class Capabilities(Status):
    """What this host can do: tap servers with their versions and ways to a tap's device too.

    Attributes, where their names do not say it:
        jail_lacks: Pieces of a server's jail that this host can't give, each with the reason.
    """

    backends: tuple[Backend, ...]
    formats: tuple[Format, ...]
    servers: dict[ServerKind, str]
    devices: tuple[DeviceKind, ...] = ()
    jail_lacks: tuple[str, ...] = ()
    kernel: str


class AgentState(Status):
    """Birth, farewell and will: retained on `hosts/<host>/agent`."""

    state: Literal["online", "offline", "lost"]
    session: str
    boot_id: str
    version: str
    labels: dict[str, str]
    groups: tuple[str, ...] = ()
    capabilities: Capabilities


class HostStatus(Status):
    """The host at a glance: retained on `hosts/<host>/status/host`."""

    host: str
    disks_by_phase: dict[Phase, int]
    guests: int
    capabilities: Capabilities
    last_sync: AwareDatetime | None
    events_dropped: Annotated[int, Field(ge=0)] = 0
    conditions: tuple[Condition, ...]
