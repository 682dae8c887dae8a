"""What an operator does about the fleet: the commands' options. Each one's work is in the module of its name."""

import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

import typer

from agent.cli import completion
from agent.cli.options import (
    GENERATION_MAX,
    Config,
    Every,
    Files,
    Group,
    Hosts,
    Labels,
    Output,
    Passphrase,
    Sign,
    Template,
    Timeout,
    meant,
    seal_from,
    settings_from,
)

app = typer.Typer()

Generation = Annotated[
    int | None,
    typer.Option(
        min=0, max=GENERATION_MAX, help="Of the documents; one more than the last by default.", show_default=False
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Until every disk is as desired.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask before guests are taken down on several hosts.")]
Guest = Annotated[
    str | None, typer.Argument(help="Only this guest.", show_default=False, autocompletion=completion.guests)
]


@app.command()
def plan(
    files: Files,
    *,
    host: Hosts = None,
    selector: Labels = None,
    every: Every = False,
    template: Template = False,
    timeout: Timeout = 10.0,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Say what definitions would change: on this host, or as live agents say with --host, -l or --all."""
    from agent.cli import plan as command

    wanted, settings = meant(host, selector, every=every), settings_from(config)
    if wanted is None:
        raise typer.Exit(command.run(files, settings=settings, output=output))
    code = command.ask(files, wanted, template=template, seconds=timeout, settings=settings, output=output)
    raise typer.Exit(code)


@app.command()
def push(
    files: Annotated[list[Path] | None, typer.Argument(help="Guest definitions; - is standard input.")] = None,
    *,
    host: Hosts = None,
    selector: Labels = None,
    group: Group = None,
    every: Every = False,
    absent: Annotated[
        str | None,
        typer.Option(help="The same as `tapster absent`.", show_default=False, autocompletion=completion.guests),
    ] = None,
    template: Template = False,
    generation: Generation = None,
    sign: Sign = None,
    passphrase_file: Passphrase = None,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    yes: Yes = False,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Publish guest definitions: to this host, or with --host, -l, --group or --all to others, at once.

    What `tapster sign` wrote goes where it was signed for.
    """
    from agent.cli import push as command
    from agent.cli.push_files import is_sealed_file
    from agent.fleet.order import Order
    from agent.fleet.targets import Selection

    if bool(files) == bool(absent):
        raise typer.BadParameter("name definition files, or a guest with --absent", param_hint="FILES")
    settings = settings_from(config)
    wanted = meant(host, selector, group, every=every) or Selection(hosts=(settings.host,))
    seconds = timeout if wait else None
    if files and all(is_sealed_file(file, settings) for file in files):
        if host or selector or group or every or template or sign or generation is not None:
            raise typer.BadParameter("signed documents say themselves for whom and which they are", param_hint="FILES")
        raise typer.Exit(command.publish_sealed(files, seconds, settings=settings, output=output))
    order = Order(wanted, generation, template, seconds, seal_from(sign, passphrase_file, settings))
    if absent:
        code = command.take_down([absent], order, agreed=yes, settings=settings, output=output)
    else:
        code = command.run(files or [], order, settings=settings, output=output)
    raise typer.Exit(code)


@app.command()
def absent(
    guests: Annotated[list[str], typer.Argument(help="Guests.", autocompletion=completion.guests)],
    *,
    host: Hosts = None,
    selector: Labels = None,
    group: Group = None,
    every: Every = False,
    generation: Generation = None,
    sign: Sign = None,
    passphrase_file: Passphrase = None,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    yes: Yes = False,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Take guests' disks down: on this host, or with --host, -l, --group or --all on others. Images are kept."""
    from agent.cli import push as command
    from agent.fleet.order import Order
    from agent.fleet.targets import Selection

    settings = settings_from(config)
    wanted = meant(host, selector, group, every=every) or Selection(hosts=(settings.host,))
    seal = seal_from(sign, passphrase_file, settings)
    order = Order(wanted, generation, seconds=timeout if wait else None, seal=seal)
    raise typer.Exit(command.take_down(guests, order, agreed=yes, settings=settings, output=output))


@app.command()
def diff(
    files: Files,
    *,
    host: Hosts = None,
    selector: Labels = None,
    group: Group = None,
    every: Every = False,
    template: Template = False,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Show how definitions differ from what hosts are told now. Exit 0: not at all, 1: they do, 2: can't be told."""
    from agent.cli import diff as command
    from agent.fleet.order import Order
    from agent.fleet.targets import Selection

    settings = settings_from(config)
    wanted = meant(host, selector, group, every=every) or Selection(hosts=(settings.host,))
    raise typer.Exit(command.run(files, Order(wanted, template=template), settings=settings, output=output))


@app.command()
def resync(
    *,
    host: Hosts = None,
    selector: Labels = None,
    every: Every = False,
    timeout: Timeout = 30.0,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Have agents look anew at their disks and at what their hosts lacked: this host's, or with --host, -l or --all."""
    from agent.cli import resync as command
    from agent.fleet.targets import Selection

    settings = settings_from(config)
    wanted = meant(host, selector, every=every) or Selection(hosts=(settings.host,))
    raise typer.Exit(command.run(wanted, seconds=timeout, settings=settings, output=output))


@app.command()
def status(
    guest: Guest = None,
    host: Hosts = None,
    selector: Labels = None,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Show every disk of the fleet, and in a sentence what is wrong with those that are not up."""
    from agent.cli import status as command

    wanted = meant(host, selector)
    raise typer.Exit(command.run(wanted=wanted, guest=guest, settings=settings_from(config), output=output))


@app.command()
def get(
    kind: Annotated[
        str, typer.Argument(metavar="guests|disks|hosts", help="What to show.", autocompletion=completion.kinds)
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Only these; for disks, of these guests.", autocompletion=completion.named),
    ] = None,
    *,
    host: Hosts = None,
    selector: Labels = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on with what changes. Ctrl-C ends it.")] = False,
    config: Config = None,
    output: Annotated[
        Literal["table", "wide", "json", "yaml"], typer.Option("--output", "-o", help="For people, or for programs.")
    ] = "table",
) -> None:
    """List guests, disks or hosts of the fleet."""
    from agent.cli import get as command

    word = f"{kind.removesuffix('s')}s"
    if word not in command.KINDS:
        raise typer.BadParameter(f"{kind!r} is none of {', '.join(sorted(command.KINDS))}", param_hint="KIND")
    wanted, settings = meant(host, selector), settings_from(config)
    code = command.run(word, names or (), wanted=wanted, watch=watch, settings=settings, output=output)
    raise typer.Exit(code)


@app.command()
def describe(
    kind: Annotated[Literal["host", "guest"], typer.Argument(help="What it is.")],
    name: Annotated[str, typer.Argument(help="Its name.", autocompletion=completion.named)],
    *,
    host: Hosts = None,
    selector: Labels = None,
    config: Config = None,
) -> None:
    """Say all that the bus has about a host, or about a guest on each host that has it."""
    from agent.cli import describe as command

    raise typer.Exit(command.run(kind, name, wanted=meant(host, selector), settings=settings_from(config)))


@app.command()
def events(
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show them as they happen. Ctrl-C ends it.")] = False,
    host: Hosts = None,
    selector: Labels = None,
    guest: Annotated[
        str | None,
        typer.Option(help="Only about this guest.", show_default=False, autocompletion=completion.guests),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            help="Only of this type, e.g. 'disk.*'.",
            show_default=False,
            autocompletion=completion.event_types,
        ),
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option(
            help="Only changes into this phase, e.g. Failed.", show_default=False, autocompletion=completion.phases
        ),
    ] = None,
    most: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many.")] = None,
    config: Config = None,
    output: Output = "table",
) -> None:
    """Show what happens on hosts."""
    from agent.cli import events as command

    if not follow:
        sys.stderr.write(
            "tapster events: no broker keeps events, so there are only those to come: say -f to follow them; "
            "`tapster status` and `tapster get disks` show how things are and since when\n"
        )
        raise typer.Exit(2)
    types = _patterns("--type", kind or (), completion.event_types(""))
    phases = _patterns("--phase", phase or (), completion.phases(""))
    only = command.Filter(meant(host, selector), guest, types, phases)
    raise typer.Exit(command.run(only, most=most, settings=settings_from(config), output=output))


def _patterns(option: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """What was given for an option, in lower case; each must stand for something that is known."""
    patterns = tuple(one.lower().removeprefix("tapster.") for one in given)
    for one, pattern in zip(given, patterns, strict=True):
        if not any(fnmatchcase(name.lower(), pattern) for name in known):
            raise typer.BadParameter(f"{one!r} is none of {', '.join(known)}", param_hint=option)
    return patterns


@app.command()
def watch(
    guest: Guest = None,
    *,
    host: Hosts = None,
    selector: Labels = None,
    sort: Annotated[
        Literal["host", "guest", "target", "phase", "backend", "size", "since", "why"],
        typer.Option(help="The column to sort by; the arrow keys change it."),
    ] = "phase",
    text: Annotated[str, typer.Option("--filter", help="Only lines that contain this; / changes it.")] = "",
    trouble: Annotated[bool, typer.Option("--trouble", help="Only what is not as it should be; t changes it.")] = False,
    config: Config = None,
) -> None:
    """Follow the status as it changes, on a full screen; in a pipe, a line for each change. q or Ctrl-C ends it."""
    from agent.cli import watch as command
    from agent.cli.screen import View

    wanted, view = meant(host, selector), View(sort=sort, text=text, trouble=trouble)
    raise typer.Exit(command.run(wanted=wanted, guest=guest, view=view, settings=settings_from(config)))
