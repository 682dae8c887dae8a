"""What a definition says, frozen: findings, disks, guests, and the limits within which a text is read."""

from dataclasses import dataclass

from reconcilers.reason import Reason
from reconcilers.spec import Backend, Device, DiskSpec, Format


@dataclass(frozen=True, slots=True)
class Finding:
    """One error in a document, or one thing in it that is refused.

    Attributes:
        reason: The word for programs.
        message: The sentence for people: what is wrong, what would be right, what to do.
        path: Where it stands: an element path such as `/domain/devices/disk[2]/driver/@type` in XML, or
            `disk[2]/format` in a guest configuration file. Positions count from 1.
        line: The line in the text, counted from 1.
    """

    reason: Reason
    message: str
    path: str
    line: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskDefinition:
    """One disk as its definition has it, whether it can be served or not.

    Attributes:
        target: The target as written, `ioemu:` and `:cdrom` taken off; None when there is none.
        device: How the guest sees it.
        type: The `type` attribute as written, `file` when there is none.
        source: Path of the image or block device, Xen prefixes taken off; None for an empty drive.
        backend: What shall serve it; None for an empty drive or when that cannot be told.
        format: How the image is to be read; None under the same conditions.
        read_only: No write may reach the source.
        shareable: Other guests that say so as well may use the source.
        honoured: Names of what the agent acts upon (`source/@file`, `readonly`), in document order.
        passed: Names of what is the hypervisor's business.
        unhonoured: Names of what the agent should act upon and this version does not.
        unknown: Names that libvirt's schema (or xl's syntax) does not have.
        refused: Why the disk is not served; empty when it is.
        spec: What the reconcilers get; None when anything was refused.
        line: The line of the disk's element or string.
    """

    target: str | None
    device: Device
    type: str
    source: str | None
    backend: Backend | None
    format: Format | None
    read_only: bool
    shareable: bool
    honoured: tuple[str, ...]
    passed: tuple[str, ...]
    unhonoured: tuple[str, ...] = ()
    unknown: tuple[str, ...]
    refused: tuple[Finding, ...]
    spec: DiskSpec | None
    line: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDefinition:
    """One guest with its disks in document order."""

    name: str
    disks: tuple[DiskDefinition, ...]

    @property
    def complete(self) -> bool:
        """Whether every disk can be served."""
        return all(disk.spec is not None for disk in self.disks)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a document may hold before it is rejected as a whole.

    Attributes:
        max_bytes: Size of the text.
        max_disks: Disks of one guest.
        max_depth: Elements within elements.
        max_layers: Images below that of a disk.
        max_parts: Elements of XML, or words of a guest configuration file.
    """

    max_bytes: int = 256 * 1024
    max_disks: int = 256
    max_depth: int = 64
    max_layers: int = 8
    max_parts: int = 20_000


class DocumentRejected(Exception):  # noqa: N818 - the name says what happened to the document
    """A document cannot be used at all.

    Attributes:
        findings: Everything that is wrong with it, as far as it could be read; never empty.
        guest: The guest's name where the document gave a usable one.
    """

    def __init__(self, *findings: Finding, guest: str | None = None) -> None:
        super().__init__("; ".join(finding.message for finding in findings))
        self.findings = findings
        self.guest = guest
