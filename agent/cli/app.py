"""The `tapster` command. Each command's work is in the module of its name, imported only when it is called."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from agent.settings import Settings

app = typer.Typer(
    help="Brings guest disks up with the backend that their definitions name.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Output = Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="For people, or for programs.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file.", show_default=False)]
Files = Annotated[list[Path], typer.Argument(help="Guest definitions; - is standard input.")]
Host = Annotated[str | None, typer.Option("--host", help="The host; this one by default.", show_default=False)]


@app.command()
def run(config: Config = None) -> None:
    """Be the host's agent, in the foreground. SIGTERM stops it and leaves disks up; SIGHUP reloads the settings."""
    from agent.cli import run as command

    raise typer.Exit(command.run(config))


@app.command()
def broker(
    *,
    dev: Annotated[bool, typer.Option("--dev", help="A private broker on loopback, for trying things out.")] = False,
    port: Annotated[int, typer.Option(help="TCP port on 127.0.0.1.")] = 1883,
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
    guest: Annotated[str | None, typer.Option(help="Take its definition from the bus.", show_default=False)] = None,
    host: Host = None,
    config: Config = None,
) -> None:
    """Print the disk part that a hypervisor needs to use what tapster brings up."""
    from agent.cli import render as command

    if bool(file) == bool(guest):
        raise typer.BadParameter("name a definition file, or a guest with --guest", param_hint="FILE")
    settings = _settings(config)
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
def plan(files: Files, host: Host = None, config: Config = None, output: Output = "table") -> None:
    """Say what definitions would change on this host, or ask a live agent with --host. Nothing is changed."""
    from agent.cli import plan as command

    raise typer.Exit(command.run(files, host=host, settings=_settings(config), output=output))


@app.command()
def push(
    files: Annotated[list[Path] | None, typer.Argument(help="Guest definitions; - is standard input.")] = None,
    *,
    host: Host = None,
    absent: Annotated[str | None, typer.Option(help="Take this guest's disks down.", show_default=False)] = None,
    generation: Annotated[
        int | None, typer.Option(min=0, help="Of the documents; one more than the last by default.", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until every disk is as desired.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait.")] = 60.0,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Publish guest definitions to a host."""
    from agent.cli import push as command

    if bool(files) == bool(absent):
        raise typer.BadParameter("name definition files, or a guest with --absent", param_hint="FILES")
    settings = _settings(config)
    code = command.run(
        files or [],
        host=host or settings.host,
        absent_guest=absent,
        generation=generation,
        wait=wait,
        timeout=timeout,
        settings=settings,
        output=output,
    )
    raise typer.Exit(code)


@app.command()
def status(
    guest: Annotated[str | None, typer.Argument(help="Only this guest.", show_default=False)] = None,
    host: Annotated[str | None, typer.Option("--host", help="Only this host.", show_default=False)] = None,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Show every disk of the fleet, and in a sentence what is wrong with those that are not up."""
    from agent.cli import status as command

    raise typer.Exit(command.run(host=host, guest=guest, settings=_settings(config), output=output))


@app.command()
def watch(
    guest: Annotated[str | None, typer.Argument(help="Only this guest.", show_default=False)] = None,
    host: Annotated[str | None, typer.Option("--host", help="Only this host.", show_default=False)] = None,
    config: Config = None,
) -> None:
    """Follow the status as it changes. Ctrl-C ends it."""
    from agent.cli import watch as command

    raise typer.Exit(command.run(host=host, guest=guest, settings=_settings(config)))


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

    settings = _settings(config)
    chosen = host or settings.host
    raise typer.Exit(command.run(host=chosen, yes=yes, timeout=timeout, settings=settings, output=output))


def _settings(config: Path | None) -> "Settings":
    from agent.settings import SettingsError, load

    try:
        return load(config)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(2) from error


def main() -> None:
    """Entry point of the console script."""
    app()
