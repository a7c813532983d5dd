"""`silotune consortium`: what the coordinator does on the server's machine."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from silotune.commands.options import AsJson, stopped

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The consortium's folder.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the member.")]
app = typer.Typer(
    help="What the coordinator does on the server's machine.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    host: Annotated[str, typer.Option("--host", help="The name or address by which members reach this machine.")],
    name: Annotated[str | None, typer.Option("--name", help="Of the consortium; else the folder's.")] = None,
    port: Annotated[int, typer.Option("--port", help="Where members reach it.")] = 8000,
    superlink_port: Annotated[int, typer.Option("--superlink-port", help="Of Flower's SuperLink, here alone.")] = 8010,
    listen: Annotated[str, typer.Option("--listen", help="Address of this machine to listen on.")] = "0.0.0.0",
    as_json: AsJson = False,
) -> None:
    """Make a consortium: its certificate authority, its server's certificate, its settings."""
    from silotune.consortium.folder import SETTINGS, create
    from silotune.consortium.up import write_units
    from silotune.recipe.checking import checked
    from silotune.settings.consortium import ConsortiumSettings

    given = {"name": name or folder.resolve().name, "host": host, "port": port, "listen": listen,
             "superlink_port": superlink_port}  # fmt: skip
    made = create(folder, checked(ConsortiumSettings, given, "silotune consortium init", "see --help"))
    unit = write_units(made)
    if as_json:
        typer.echo(json.dumps({"consortium": made.settings.name, "folder": str(made.folder), "address": made.address}))
        return
    typer.echo(
        f"{made.folder / SETTINGS}: consortium {made.settings.name}, reached at {made.address}\n"
        f"unit for systemd: {unit}\n"
        f"Next: silotune consortium up {folder}, and for each member: silotune consortium invite {folder} NAME"
    )


@app.command()
def invite(
    folder: Folder,
    name: Name,
    hours: Annotated[float, typer.Option("--hours", min=0.01, max=24 * 90, help="How long it is open.")] = 72.0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to write it; else ./NAME.invite.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an invitation for a member: the address, the certificate authority, and a token that works once."""
    from silotune.consortium import membership
    from silotune.consortium.folder import open_consortium

    place = out or Path(f"{name}.invite")
    membership.require_new(place)
    made = membership.invite(open_consortium(folder), name, hours)
    membership.write_invitation(made, place)
    if as_json:
        typer.echo(json.dumps({"invitation": str(place), "name": name, "until": made.until}))
        return
    typer.echo(f"{place}: for {name}, open until {made.until}. Send it over a way that only they can read; they run:\n"
               f"silotune silo join {place.name} --data FOLDER_OF_THEIR_TEXT")  # fmt: skip


@app.command()
def up(folder: Folder) -> None:
    """Run the consortium's server until it is stopped: Flower's SuperLink on this machine alone, and a gateway."""
    from silotune.consortium.folder import open_consortium
    from silotune.consortium.up import up

    up(open_consortium(folder), stopped(), lambda text: typer.echo(f"silotune: {text}", err=True))


@app.command(hidden=True)
def gateway(folder: Folder) -> None:
    """Run the gateway alone, as `consortium up` does."""
    from silotune.consortium.folder import open_consortium
    from silotune.consortium.gateway import serve

    serve(open_consortium(folder))


@app.command()
def status(folder: Folder, as_json: AsJson = False) -> None:
    """Tell who is there, since when, and what the run that goes on waits for."""
    from rich.console import Console
    from rich.table import Table

    from silotune.consortium.folder import open_consortium
    from silotune.consortium.status import status

    found = status(open_consortium(folder))
    if as_json:
        typer.echo(json.dumps({**asdict(found), "run": str(found.run) if found.run else None}))
        return
    table = Table(title=f"{len(found.members)} member{'' if len(found.members) == 1 else 's'} and invitations")
    for column in ("name", "state", "since / until", "has not answered", "fingerprint"):
        table.add_column(column, overflow="fold")
    for one in found.members:
        table.add_row(one.name, one.state, one.since[:19].replace("T", " "), one.waits_for, one.fingerprint)
    console = Console()
    console.print(table)
    if found.run is not None:
        console.print(f"run {found.run}: round {found.round} of {found.rounds}", highlight=False, soft_wrap=True)
    else:
        console.print("no run goes on")
    if found.paused:
        console.print("paused: no round begins until `silotune consortium resume`")


@app.command()
def pause(folder: Folder) -> None:
    """Begin no further round until `resume`; the round that goes on is finished."""
    from silotune.consortium.folder import open_consortium, set_paused

    set_paused(open_consortium(folder), paused=True)
    typer.echo("paused: no further round begins.")


@app.command()
def resume(folder: Folder) -> None:
    """Let rounds begin again."""
    from silotune.consortium.folder import open_consortium, set_paused

    set_paused(open_consortium(folder), paused=False)
    typer.echo("resumed: rounds begin again.")


@app.command()
def expel(folder: Folder, name: Name) -> None:
    """Let a member in no more, from its next call on; an invitation of that name ends too."""
    from silotune.consortium import membership
    from silotune.consortium.folder import open_consortium

    membership.expel(open_consortium(folder), name)
    typer.echo(f"{name}: expelled.")


@app.command()
def rotate(folder: Folder) -> None:
    """Renew the server's key, certificate and secret; members need nothing new."""
    from silotune.consortium.folder import now_running, open_consortium, renew
    from silotune.errors import InputError

    consortium = open_consortium(folder)
    if (run := now_running(consortium)) is not None:
        raise InputError(f"{folder}: a run goes on ({run}), and its server would lose its way. Wait for its end.")
    renew(consortium)
    typer.echo("renewed: `consortium up` takes it within a second, and members' nodes come back by themselves.")
