"""The sections of the settings: every table of the TOML file, with each option's range, default and description."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from agent.log import LogFormat
from agent.setting_kinds import (
    AbsolutePath,
    Bytes,
    Count,
    DevicePattern,
    ImagePool,
    Seconds,
    SecretPath,
    Server,
    TapDevice,
    TapFormat,
    WholeSeconds,
    from_commas,
)
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.jail.profile import Jail
from reconcilers.pools import Pools
from reconcilers.spec import Format


class Section(BaseModel):
    """Base of every table in the file: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TlsSettings(Section):
    """Certificates towards the broker."""

    ca_file: SecretPath | None = Field(
        None,
        description="Certificates (PEM) that may sign the broker's. Setting it turns on TLS, 1.2 or newer.",
        examples=["/etc/tapster/ca.pem"],
    )
    cert_file: SecretPath | None = Field(
        None,
        description="This host's certificate (PEM); its CN is the host's name. Needs key_file and ca_file.",
        examples=["/etc/tapster/host.pem"],
    )
    key_file: SecretPath | None = Field(
        None,
        description="The key (PEM) of cert_file, readable by root only; or credential:NAME, of systemd.",
        examples=["/etc/tapster/host.key"],
    )

    @property
    def enabled(self) -> bool:
        """Whether the broker is spoken to by TLS."""
        return self.ca_file is not None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file need each other; set both or neither")
        if self.cert_file is not None and self.ca_file is None:
            raise ValueError("cert_file needs ca_file, which turns on TLS")
        return self


class BrokerSettings(Section):
    """The MQTT broker and the session with it."""

    host: str = Field("127.0.0.1", min_length=1, description="Name or address of the MQTT broker.")
    port: Count = Field(1883, ge=1, le=65535, description="Its TCP port; 8883 is usual with TLS.")
    username: str | None = Field(
        None, min_length=1, description="User at the broker. Not set: the host's name.", examples=["db1"]
    )
    password_file: SecretPath | None = Field(
        None,
        description="File with the password and nothing else, or credential:NAME for one of systemd. "
        "Not set: no user and no password are sent.",
        examples=["/etc/tapster/password"],
    )
    keepalive: WholeSeconds = Field(
        30,
        ge=5,
        le=65535,
        description="A silent connection is probed after this long; it is lost after 1.5 times.",
    )
    session_expiry: WholeSeconds = Field(
        7 * 24 * 3600,
        ge=60,
        le=4_294_967_294,
        description="How long the broker keeps messages for an absent host.",
    )
    will_delay: WholeSeconds = Field(
        30, ge=0, le=86400, description="How long a host may be away before the broker announces it as lost."
    )
    reconnect_min: Seconds = Field(
        1.0,
        ge=0.05,
        le=3600,
        description="Longest wait before the first new attempt to connect; it then doubles.",
    )
    reconnect_max: Seconds = Field(
        60.0,
        ge=0.05,
        le=3600,
        description="Longest wait between attempts to connect, at least reconnect_min.",
    )
    connect_timeout: Seconds = Field(10.0, ge=0.1, le=300, description="How long one attempt to connect may take.")
    tls: TlsSettings = Field(TlsSettings(), description="Certificates towards the broker.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.reconnect_min > self.reconnect_max:
            raise ValueError("reconnect_min must not be above reconnect_max")
        return self


class PathSettings(Section):
    """Where the agent keeps things."""

    runtime: AbsolutePath = Field(
        Path("/run/tapster"), description="Stable disk paths, sockets and tap folders; gone after a reboot."
    )
    state: AbsolutePath = Field(
        Path("/var/lib/tapster"), description="The store of accepted documents; must survive reboots."
    )


class ImageSettings(Section):
    """What of the host guests may be given."""

    pools: Annotated[tuple[ImagePool, ...], BeforeValidator(from_commas)] = Field(
        (Path("/var/lib/tapster/images"), Path("/var/lib/libvirt/images")),
        description="Folders whose files may be images. In them no link is followed and no mount point crossed; a "
        "mount point below a pool is a pool of its own.",
    )
    devices: Annotated[tuple[DevicePattern, ...], BeforeValidator(from_commas)] = Field(
        (),
        description="Block devices that may be sources, by what the kernel and device mapper call them: /dev/sd[b-z], "
        "/dev/mapper/guests-*. None: no block devices.",
    )
    hard_links: bool = Field(False, description="Files with more than one name may be images.")

    def allowed(self, paths: PathSettings) -> Pools:
        """As the reconcilers have it."""
        private = tuple(path.resolve() for path in (paths.runtime, paths.state))
        return Pools(folders=self.pools, devices=self.devices, hard_links=self.hard_links, private=private)


class LimitSettings(Section):
    """What one document, and all of them together, may cost."""

    document_bytes: Bytes = Field(262144, ge=1024, le=16_777_216, description="Largest desired document.")
    disks_per_guest: Count = Field(256, ge=1, le=4096, description="Most disks in one definition.")
    xml_depth: Count = Field(64, ge=8, le=255, description="Deepest nesting of elements in one definition.")
    backing_layers: Count = Field(8, ge=0, le=32, description="Most images below that of a disk.")
    guests: Count = Field(10000, ge=1, le=1_000_000, description="Most guests on this host.")


class ControllerSettings(Section):
    """How the work on disks is paced."""

    workers: Count = Field(32, ge=1, le=256, description="Most disks that are worked on at the same time.")
    retry_min: Seconds = Field(
        0.5, ge=0.05, le=3600, description="Longest wait before a failed disk's first retry; it then doubles."
    )
    retry_max: Seconds = Field(
        60.0, ge=0.05, le=86400, description="Longest wait between retries of a disk, at least retry_min."
    )
    resync: Seconds = Field(
        300.0,
        ge=1,
        le=86400,
        description="Every disk is looked at anew this often, even when nothing was reported.",
    )
    step_timeout: Seconds = Field(30.0, ge=0.1, le=3600, description="How long one step on one disk may take.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.retry_min > self.retry_max:
            raise ValueError("retry_min must not be above retry_max")
        return self


class PolicySettings(Section):
    """What to do where there is a choice."""

    partial: bool = Field(
        True, description="Bring up a guest's good disks when others are refused; false: all of them or none."
    )


class BlktapSettings(Section):
    """User-space block servers, one process a disk."""

    servers: Annotated[tuple[Server, ...], BeforeValidator(from_commas)] = Field(
        (ServerKind.TAPDISK, ServerKind.STORAGE_DAEMON),
        description="Servers that may be used, the preferred first; one that the host lacks, or that lacks what a disk "
        "needs, is passed over. None: no blktap disks.",
    )
    devices: Annotated[tuple[TapDevice, ...], BeforeValidator(from_commas)] = Field(
        (DeviceKind.NBD, DeviceKind.FUSE_LOOP),
        description="How a block device is made of what a server exports, the preferred first; what the host lacks is "
        "passed over. Only over nbd a guest is spared the death of a server; it needs the module, with max_part=0. "
        "nbd-socket alone makes none: hypervisors are given the servers' sockets, and must speak NBD.",
    )
    nbd_grace: WholeSeconds = Field(
        300,
        ge=1,
        le=86400,
        description="How long requests to an nbd device wait when its server has died, before they fail.",
    )
    socket_group: str | None = Field(
        None,
        min_length=1,
        description="Group that may connect to the sockets of nbd-socket. Not set: root alone.",
        examples=["kvm"],
    )
    start_timeout: Seconds = Field(10.0, ge=0.1, le=300, description="How long a server may take to start.")
    jail: Jail = Field(
        Jail.REQUIRE,
        description="What if this host can't give a server its whole jail: no blktap disks, or go on with less.",
    )
    formats: Annotated[tuple[TapFormat, ...], BeforeValidator(from_commas)] = Field(
        (
            Format.AIO,
            Format.QCOW,
            Format.QCOW2,
            Format.VHD,
            Format.VHDX,
            Format.VDI,
            Format.QED,
        ),
        description="Image formats that may be served; a disk of another format is refused. vmdk is left out: its "
        "descriptors can name other files, and of its kinds only monolithicSparse is served.",
    )

    @model_validator(mode="after")
    def _device_or_socket(self) -> Self:
        if DeviceKind.NBD_SOCKET in self.devices and len(self.devices) > 1:
            raise ValueError(
                "in devices, nbd-socket stands alone: a hypervisor has to know whether it is given a device or a socket"
            )
        return self

    @property
    def gives_sockets(self) -> bool:
        """Whether hypervisors are given sockets in place of block devices."""
        return DeviceKind.NBD_SOCKET in self.devices


class TrustSettings(Section):
    """Whose documents count."""

    required: bool = Field(
        False, description="Refuse documents that are not signed. false: a guest that was signed once stays signed."
    )
    keys: AbsolutePath = Field(
        Path("/etc/tapster/trust"),
        description="Folder with the public keys (PEM) of those who may sign; only root may change it.",
    )
    threshold: Count = Field(1, ge=1, le=16, description="How many of these keys must sign each document.")


def _local(listen: str) -> str:
    path = listen.removeprefix("unix:")
    if path != listen:
        if not path.startswith("/"):
            raise ValueError("a socket is named by its absolute path")
        return listen
    host, _, port = listen.rpartition(":")
    try:
        local = ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(
            "it must be an address of the loopback, since it tells of every guest and asks for no password"
        )
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError("a port from 1 to 65535 is missing at its end")
    return listen


class MetricsSettings(Section):
    """Metrics for Prometheus."""

    listen: Annotated[str, AfterValidator(_local)] | None = Field(
        None,
        description="Where `/metrics` is answered: a loopback address and port, or a Unix socket. Not set: nowhere.",
        examples=["127.0.0.1:9477"],
    )


class LogSettings(Section):
    """The log."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least important line shown.")
    format: LogFormat = Field(
        "auto",
        description="auto is text on a terminal, records with fields in systemd's journal, and elsewhere JSON, one "
        "object a line.",
    )
