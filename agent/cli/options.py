"""The options that several commands share, and what they mean together."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from agent.cli import completion

if TYPE_CHECKING:
    from agent.fleet.targets import Selection
    from agent.settings import Settings
    from agent.trust.private_key import PrivateKey
    from agent.trust.seal import Seal

GENERATION_MAX = 2**63 - 1
"""As `agent.document` has it, which takes long to import."""

Output = Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="For people, or for programs.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file.", show_default=False)]
Files = Annotated[list[Path], typer.Argument(help="Guest definitions; - is standard input.")]
Host = Annotated[
    str | None,
    typer.Option("--host", help="The host; this one by default.", show_default=False, autocompletion=completion.hosts),
]

Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="A host; may be given again.", show_default=False, autocompletion=completion.hosts),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--selector",
        "-l",
        help="Hosts with these labels: site=ams,rack!=12.",
        show_default=False,
        autocompletion=completion.labels,
    ),
]
Every = Annotated[bool, typer.Option("--all", help="Every host that is in the fleet now.")]
Group = Annotated[
    str | None,
    typer.Option(
        help="A group's standing documents; hosts that join later get them too.",
        show_default=False,
        autocompletion=completion.groups,
    ),
]
Template = Annotated[bool, typer.Option("--template", help="Fill {host} and labels into the sources' paths.")]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait.")]

Sign = Annotated[
    list[Path] | None,
    typer.Option("--sign", help="Sign with this private key; may be given again.", show_default=False),
]
Passphrase = Annotated[
    Path | None, typer.Option(help="File with the passphrase of encrypted keys.", show_default=False)
]


def settings_from(config: Path | None) -> "Settings":
    """The settings; what is wrong with them ends the command as a wrong use of it."""
    from agent.settings import SettingsError, load

    try:
        return load(config)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(2) from error


def meant(
    hosts: list[str] | None, labels: list[str] | None = None, group: str | None = None, *, every: bool = False
) -> "Selection | None":
    """Whom the options mean; None where none was given."""
    from agent.fleet.selector import SelectorError
    from agent.fleet.targets import TargetError, selection

    try:
        return selection(hosts or (), labels or (), group, every)
    except (SelectorError, TargetError) as error:
        sys.stderr.write(f"tapster: {error}\n")
        raise typer.Exit(2) from error


def private_keys(files: list[Path] | None, passphrase_file: Path | None) -> "tuple[PrivateKey, ...]":
    """The keys to sign with; one that can't be used ends the command."""
    from agent.trust.keys import KeyFileError
    from agent.trust.seal import load_keys

    try:
        return load_keys(files or (), passphrase_file)
    except (KeyFileError, OSError) as error:
        sys.stderr.write(f"tapster: {error}\n")
        raise typer.Exit(1) from error


def seal_from(files: list[Path] | None, passphrase_file: Path | None, settings: "Settings") -> "Seal | None":
    """What signs documents; None where they shall not be signed."""
    from agent.trust.seal import Seal

    return Seal(settings.fleet, private_keys(files, passphrase_file)) if files else None
