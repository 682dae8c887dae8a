"""The kinds of values that settings have: names, paths, numbers with units, and what the environment makes of lists."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from agent.options import Unit
from reconcilers.blktap.kinds import DeviceKind, ServerKind
from reconcilers.spec import Format

CREDENTIAL = "credential:"
"""What a secret's setting begins with where systemd hands the secret over."""

SERVICE_CREDENTIALS = Path("/run/credentials/tapster.service")
"""Where those of the agent's unit are while it runs: an operator's commands have none of their own."""


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")  # noqa: TRY004 - pydantic reports ValueError only
    return value


def from_commas(value: object) -> object:
    """A list as the environment has it."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def from_pairs(value: object) -> object:
    """A table as the environment has it."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError("as one text, labels are written site=ams,rack=12")
    return {name.strip(): text.strip() for name, _, text in pairs}


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("it would depend on the folder that the agent is started from")
    return path


def _credential(value: object) -> object:
    """The file of a systemd credential (systemd.exec(5), LoadCredential=): this process's own, or else the agent's."""
    if not isinstance(value, str) or not value.startswith(CREDENTIAL):
        return value
    name, folder = value.removeprefix(CREDENTIAL), os.environ.get("CREDENTIALS_DIRECTORY")
    if "/" in name or name in ("", ".", ".."):
        raise ValueError("a credential's name is a file name, as after LoadCredential= in the unit")
    if folder:
        return Path(folder, name)
    file = SERVICE_CREDENTIALS / name
    if not os.access(file, os.R_OK):
        why = f"systemd gives this process no credentials, and {file} can't be read"
        raise ValueError(f"{why}; start the agent, add LoadCredential= to its unit, or name a file")
    return file


def no_builtin(groups: tuple[str, ...]) -> tuple[str, ...]:
    """Groups without the one that every host is in."""
    if "all" in groups:
        raise ValueError("every host is in the group 'all' already; leave it out")
    return groups


def _no_kernel_tree(path: Path) -> Path:
    if ".." in path.parts or any(path.is_relative_to(tree) for tree in ("/proc", "/sys")):
        raise ValueError("a pool is a folder of files on a disk, named without '..'")
    return path


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$")]
LabelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelText = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{0,63}$")]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
SecretPath = Annotated[Path, BeforeValidator(_credential), AfterValidator(_absolute)]
ImagePool = Annotated[AbsolutePath, AfterValidator(_no_kernel_tree)]
DevicePattern = Annotated[str, Field(pattern=r"^/dev/[^/].*$")]
Count = Annotated[int, BeforeValidator(_no_truth)]
Seconds = Annotated[float, BeforeValidator(_no_truth), Unit("seconds")]
WholeSeconds = Annotated[int, BeforeValidator(_no_truth), Unit("seconds")]
Bytes = Annotated[int, BeforeValidator(_no_truth), Unit("bytes")]
Server = Literal[ServerKind.TAPDISK, ServerKind.STORAGE_DAEMON]
TapDevice = Literal[DeviceKind.NBD, DeviceKind.FUSE_LOOP, DeviceKind.NBD_SOCKET]
TapFormat = Literal[Format.AIO, Format.QCOW, Format.QCOW2, Format.VHD, Format.VHDX, Format.VDI, Format.QED, Format.VMDK]
