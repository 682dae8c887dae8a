"""`tapster rollout` and its commands: their options. The work is in the modules `rollout` and `rollout_look`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agent.cli import completion
from agent.cli.options import (
    Config,
    Every,
    Hosts,
    Labels,
    Output,
    Passphrase,
    Sign,
    Template,
    meant,
    seal_from,
    settings_from,
)


def _rollout(offered: Callable[[typer.Context, str], list[tuple[str, str]]]) -> Any:
    help_text = "The rollout, as `tapster rollout history` has it."
    return typer.Argument(metavar="ID", help=help_text, autocompletion=offered)


Id = Annotated[str, _rollout(completion.rollouts)]
OpenId = Annotated[str, _rollout(completion.open_rollouts)]
RestingId = Annotated[str, _rollout(completion.resting_rollouts)]
TakeOver = Annotated[bool, typer.Option("--take-over", help="Although somebody drives it, who is told and stops.")]
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, None: 1}


class _StartsByDefault(TyperGroup):
    """A group in which what is no command's name begins a rollout: `tapster rollout web1.xml --all`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in {"--help", *ctx.help_option_names}:
            args = ["start", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_StartsByDefault,
    no_args_is_help=True,
    help="Publish a definition wave by wave, and stop when it hurts: `tapster rollout FILE -l site=ams`.",
)


@app.command()
def start(
    file: Annotated[Path | None, typer.Argument(help="A guest's definition; - is standard input.")] = None,
    *,
    absent: Annotated[
        str | None,
        typer.Option(help="Take this guest's disks down.", show_default=False, autocompletion=completion.guests),
    ] = None,
    host: Hosts = None,
    selector: Labels = None,
    every: Every = False,
    template: Template = False,
    canary: Annotated[int, typer.Option(min=0, help="Hosts of the first wave, of which none may fail.")] = 1,
    wave: Annotated[str, typer.Option(help="Hosts of each further wave, or percent of all.")] = "10%",
    max_failed: Annotated[str, typer.Option(help="Hosts that may fail in all, or percent of all.")] = "2%",
    timeout: Annotated[str, typer.Option(help="For each wave; who is silent by then has failed.")] = "5m",
    rollback: Annotated[bool, typer.Option("--rollback", help="Restore what was there when too many fail.")] = False,
    sign: Sign = None,
    passphrase_file: Passphrase = None,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Begin a rollout. The word may be left out: `tapster rollout FILE …`."""
    from agent.cli import rollout as command
    from agent.rollout.begin import Terms

    if bool(file) == bool(absent):
        raise typer.BadParameter("name a definition file, or a guest with --absent", param_hint="FILE")
    wanted = meant(host, selector, every=every)
    if wanted is None:
        raise typer.BadParameter("say for which hosts: --host, -l or --all", param_hint="-l")
    settings = settings_from(config)
    terms = Terms(
        canary=canary,
        wave=_share(wave, "--wave"),
        max_failed=_share(max_failed, "--max-failed"),
        seconds=_seconds(timeout),
        rollback=rollback,
        template=template,
        seal=seal_from(sign, passphrase_file, settings),
    )
    raise typer.Exit(command.start(file, absent, wanted=wanted, terms=terms, settings=settings, output=output))


@app.command()
def resume(
    rollout: OpenId,
    *,
    max_failed: Annotated[str | None, typer.Option(help="From now on.", show_default=False)] = None,
    take_over: TakeOver = False,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Go on with a rollout that was interrupted or stopped, from any machine."""
    from agent.cli import rollout as command

    limit = None if max_failed is None else _share(max_failed, "--max-failed")
    settings = settings_from(config)
    code = command.resume(rollout, max_failed=limit, take_over=take_over, settings=settings, output=output)
    raise typer.Exit(code)


@app.command()
def abort(
    rollout: OpenId,
    *,
    rollback: Annotated[bool, typer.Option("--rollback", help="Restore what was there before.")] = False,
    config: Config = None,
    output: Output = "table",
) -> None:
    """End a rollout, whoever drives it. What was published stays, unless it is rolled back."""
    from agent.cli import rollout as command

    raise typer.Exit(command.abort(rollout, rollback=rollback, settings=settings_from(config), output=output))


@app.command()
def undo(rollout: Id, *, take_over: TakeOver = False, config: Config = None, output: Output = "table") -> None:
    """Restore on every host what it was told before, unless somebody has pushed since."""
    from agent.cli import rollout as command

    raise typer.Exit(command.undo(rollout, take_over=take_over, settings=settings_from(config), output=output))


@app.command()
def status(rollout: Id, config: Config = None, output: Output = "table") -> None:
    """Show how a rollout stands, wave by wave, and what is wrong on hosts."""
    from agent.cli import rollout_look as command

    raise typer.Exit(command.status(rollout, settings=settings_from(config), output=output))


@app.command()
def history(config: Config = None, output: Output = "table") -> None:
    """List all rollouts that the bus knows."""
    from agent.cli import rollout_look as command

    raise typer.Exit(command.history(settings=settings_from(config), output=output))


@app.command()
def forget(rollout: RestingId, config: Config = None) -> None:
    """Take a rollout that has ended off the bus; it can't be undone then. Hosts are not touched."""
    from agent.cli import rollout_look as command

    raise typer.Exit(command.drop(rollout, settings=settings_from(config)))


def _share(text: str, option: str) -> Any:
    from agent.rollout.waves import ShareError, parse_share

    try:
        return parse_share(text)
    except ShareError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _seconds(text: str) -> float:
    found = _DURATION.fullmatch(text.strip())
    if not found or float(found[1]) == 0:
        raise typer.BadParameter(f"{text!r} is no time; write for example 90s, 5m or 1h", param_hint="--timeout")
    return float(found[1]) * _SECONDS[found[2]]
