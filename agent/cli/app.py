"""The `tapster` command. Each command's work is in the module of its name, imported only when it is called."""

import errno
import gc as garbage
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from agent.cli import bash_words, completion, fleet_commands, rollout_commands, trust_commands, zsh_words
from agent.cli.options import Config, Files, Host, Output, settings_from
from agent.cli.spared import put_off, spared

app = typer.Typer(
    help="Brings guest disks up with the backend that their definitions name.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

GuestHere = Annotated[str, typer.Argument(help="The guest.", autocompletion=completion.guests_here)]
TargetsHere = Annotated[
    list[str] | None,
    typer.Argument(help="Its disks; all by default.", show_default=False, autocompletion=completion.targets_here),
]
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SHOWS_HELP = ("complete_zsh", "complete_fish")
"""Requests for completion, as typer's scripts make them, that are answered with a line of help beside each word."""


@app.command()
def run(config: Config = None) -> None:
    """Be the host's agent, in the foreground. SIGTERM stops it and leaves disks up; SIGHUP reloads the settings."""
    garbage.disable()  # until `look_seldom`: looking over for garbage what is imported is a tenth of the start
    with spared("rich"):  # the log's library would import it for its pictures: 4 MB, and another tenth of the start
        from agent.cli import run as command

    raise typer.Exit(command.run(config))


@app.command()
def broker(
    *,
    dev: Annotated[bool, typer.Option("--dev", help="A private broker on loopback, for trying things out.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port on 127.0.0.1.")] = 1883,
    folder: Annotated[Path, typer.Option(help="Where it keeps its data.")] = Path("/var/lib/tapster/broker"),
) -> None:
    """Run a private mosquitto on loopback, in the foreground."""
    from agent.cli import broker as command

    raise typer.Exit(command.run(dev, port, folder))


@app.command()
def inspect(files: Files, output: Output = "table") -> None:
    """Say what definitions mean. No host is touched."""
    from agent.cli import inspect as command

    raise typer.Exit(command.run(files, output))


@app.command()
def render(
    file: Annotated[Path | None, typer.Argument(help="A definition; - is standard input.", show_default=False)] = None,
    *,
    to: Annotated[
        Literal["libvirt", "xl", "qemu", "cloud-hypervisor", "firecracker"], typer.Option(help="The hypervisor.")
    ],
    guest: Annotated[
        str | None,
        typer.Option(help="Take its definition from the bus.", show_default=False, autocompletion=completion.guests),
    ] = None,
    host: Host = None,
    config: Config = None,
) -> None:
    """Print the disk part that a hypervisor needs to use what tapster brings up."""
    from agent.cli import render as command

    if bool(file) == bool(guest):
        raise typer.BadParameter("name a definition file, or a guest with --guest", param_hint="FILE")
    settings = settings_from(config)
    raise typer.Exit(command.run(to, file=file, guest=guest, host=host or settings.host, settings=settings))


@app.command()
def schema(
    *,
    asyncapi: Annotated[bool, typer.Option("--asyncapi", help="The whole bus, as an AsyncAPI 3.0 document.")] = False,
) -> None:
    """Print the JSON Schemas of all that goes over the bus."""
    from agent.cli import schema as command

    raise typer.Exit(command.run(asyncapi=asyncapi))


@app.command()
def gc(
    host: Host = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for each guest.")] = 60.0,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Show disks that no document names and, when agreed to, take them down. Images are kept."""
    from agent.cli import gc as command

    settings = settings_from(config)
    chosen = host or settings.host
    raise typer.Exit(command.run(host=chosen, yes=yes, timeout=timeout, settings=settings, output=output))


@app.command()
def doctor(config: Config = None, output: Output = "table") -> None:
    """Say what is wrong with this host, and the command that mends it. Nothing is changed."""
    from agent.cli import doctor as command

    raise typer.Exit(command.run(settings=settings_from(config), output=output))


@app.command(name="support-bundle")
def support_bundle(
    *,
    file: Annotated[Path | None, typer.Option("--file", help="The tar file to make.", show_default=False)] = None,
    config: Config = None,
) -> None:
    """Collect settings, statuses, logs and kernel facts into one file, without secrets."""
    from agent.cli import support_bundle as command
    from agent.settings import file_of

    settings = settings_from(config)
    target = file or Path(f"tapster-{settings.host}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    raise typer.Exit(command.run(config=file_of(config), target=target, settings=settings))


@app.command()
def quiesce(
    guest: GuestHere,
    targets: TargetsHere = None,
    *,
    seconds: Annotated[float, typer.Option("--for", min=1, max=600, help="Seconds until they go on anyway.")] = 60.0,
    config: Config = None,
) -> None:
    """Flush a guest's disks on this host and hold them still, so that their images can be copied."""
    from agent.cli import quiesce as command

    raise typer.Exit(command.quiesce(guest, targets or (), seconds=seconds, settings=settings_from(config)))


@app.command()
def resume(
    guest: GuestHere,
    targets: TargetsHere = None,
    *,
    config: Config = None,
) -> None:
    """Let disks go on that were held still; exit 1 if one was not held until now."""
    from agent.cli import quiesce as command

    raise typer.Exit(command.resume(guest, targets or (), settings_from(config)))


@app.command()
def grow(
    guest: GuestHere,
    target: Annotated[str, typer.Argument(help="Its disk.", autocompletion=completion.targets_here)],
    size: Annotated[str, typer.Argument(help="What it is to have: bytes, or a number with K, M, G or T behind it.")],
    *,
    config: Config = None,
) -> None:
    """Make a disk of a guest larger on this host, image and all, while it is in use. None is made smaller."""
    from agent.cli import grow as command

    try:
        size_bytes = command.size_of(size)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="SIZE") from error
    raise typer.Exit(command.grow(guest, target, size_bytes, settings_from(config)))


app.add_typer(fleet_commands.app)
app.add_typer(trust_commands.app)
app.add_typer(rollout_commands.app, name="rollout")


def main() -> None:
    """Entry point of the console script."""
    # Who has no plugins for pydantic need not have it look for them in the metadata of every library there is.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if len(sys.argv) == 1 or "--help" in sys.argv or os.environ.get("_TAPSTER_COMPLETE") in _SHOWS_HELP:
        _load_help()
    zsh_words.step_over_option(os.environ)
    with _written(), bash_words.mended(os.environ):
        app()


@contextmanager
def _written() -> Iterator[None]:
    """See that what was printed is written, and say so where there is no room for it."""
    try:
        try:
            yield
        finally:
            if sys.stdout:  # there is none where it was closed before the start
                sys.stdout.flush()
    except OSError as error:
        if error.filename or error.errno not in _NO_ROOM | {errno.EPIPE}:
            raise
        from agent.cli.ending import write_no_more

        write_no_more()
        if error.errno in _NO_ROOM:
            sys.stderr.write(f"tapster: not all could be written: {error.strerror}; write it to where there is room\n")
        sys.exit(1)


def _load_help() -> None:
    """Load what typer shows help with, which it would else do itself: twice as long.

    Half of it is for help in Markdown and for tracebacks in colour, and ours are neither.
    """
    with put_off("rich.markdown", "rich.traceback"):
        import typer.rich_utils  # noqa: F401
