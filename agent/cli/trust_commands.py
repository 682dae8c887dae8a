"""What an operator does about keys and signatures: the commands' options. Each one's work is in `keys` or `sign`."""

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.options import GENERATION_MAX, Config, Output, Passphrase, Sign, private_keys, settings_from

app = typer.Typer()
keys = typer.Typer(help="Make, show and hand over the keys that sign documents.", no_args_is_help=True)
app.add_typer(keys, name="keys")

Out = Annotated[Path | None, typer.Option(help="Write to this file.", show_default=False)]


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="A definition, or what was signed already; - is standard input.")],
    *,
    key: Annotated[list[Path], typer.Option(help="Sign with this private key; may be given again.")],
    host: Annotated[str | None, typer.Option(help="The host it is for.", show_default=False)] = None,
    group: Annotated[str | None, typer.Option(help="Or the group.", show_default=False)] = None,
    generation: Annotated[
        int | None, typer.Option(min=0, max=GENERATION_MAX, help="Its count of versions.", show_default=False)
    ] = None,
    passphrase_file: Passphrase = None,
    out: Out = None,
    config: Config = None,
) -> None:
    """Sign a definition for one host or group, or add a signature to what others have signed. Nothing is published."""
    from agent.cli import sign as command
    from agent.cli.push_files import is_sealed_file

    settings, signers = settings_from(config), private_keys(key, passphrase_file)
    if is_sealed_file(file, settings):
        if host or group or generation is not None:
            raise typer.BadParameter("what was signed says itself for whom and which it is", param_hint="FILE")
        raise typer.Exit(command.cosign(file, signers, out=out, settings=settings))
    if bool(host) == bool(group) or generation is None:
        raise typer.BadParameter("say whom it is for, with --host or --group, and its --generation", param_hint="FILE")
    code = command.seal(file, signers, host=host, group=group, generation=generation, out=out, settings=settings)
    raise typer.Exit(code)


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the files: NAME.key, which is yours alone, and NAME.pub.")],
    *,
    folder: Annotated[Path, typer.Option(help="Where to make them.")] = Path(),
    passphrase_file: Annotated[
        Path | None, typer.Option(help="Encrypt the private key with what stands in this file.", show_default=False)
    ] = None,
) -> None:
    """Make a pair of keys."""
    from agent.cli import keys as command

    raise typer.Exit(command.new(name, folder, passphrase_file))


@keys.command("list")
def list_keys(
    *,
    bus: Annotated[bool, typer.Option("--bus", help="Also what the statements on the bus say.")] = False,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Show the keys that are trusted here."""
    from agent.cli import keys as command

    raise typer.Exit(command.show(settings_from(config), bus=bus, output=output))


@keys.command()
def rotate(
    *,
    trust: Annotated[
        list[Path] | None,
        typer.Option(
            help="A public key in force from now on; may be given again. None: those in trust.keys here.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        int | None,
        typer.Option(min=1, max=16, help="How many must sign; trust.threshold by default.", show_default=False),
    ] = None,
    days: Annotated[float, typer.Option(min=0.001, max=3650, help="After so many, hosts miss a newer one.")] = 30.0,
    sign: Sign = None,
    passphrase_file: Passphrase = None,
    version: Annotated[
        int | None,
        typer.Option(min=1, help="Of the statement; one more than the last on the bus by default.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write it for others to sign, and publish nothing.")] = None,
    statement: Annotated[
        Path | None, typer.Option(help="Publish this one, which others have signed.", show_default=False)
    ] = None,
    config: Config = None,
) -> None:
    """Hand over to other keys, or say that those of now are still good: publish a statement that the old keys sign."""
    from agent.cli import keys as command

    settings = settings_from(config)
    if statement:
        if trust or threshold or sign or version or out:
            raise typer.BadParameter("a statement says itself what it says", param_hint="--statement")
        raise typer.Exit(command.publish(statement, settings))
    if not sign:
        raise typer.BadParameter("name a private key of now", param_hint="--sign")
    signers = private_keys(sign, passphrase_file)
    code = command.rotate(trust or [], threshold, days, signers, version=version, out=out, settings=settings)
    raise typer.Exit(code)
