"""`silotune silo`: what a member does on its own machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

from silotune.commands.options import AsJson, stopped

Folder = Annotated[  # the worker may walk through it and not look around in it
    Path, typer.Argument(metavar="FOLDER", help="The silo's folder, which holds silo.toml.", readable=False)
]
app = typer.Typer(help="What a member does on its own machine.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def join(
    invitation: Annotated[Path, typer.Argument(metavar="INVITATION", help="The file from the coordinator.")],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="The silo's text: train.* and maybe test.*.")],
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="FOLDER", help="The silo's own folder; else ./NAME.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="The base model here, if not the embedded one.")] = None,
    users: Annotated[
        str | None, typer.Option("--users", metavar="WORKER,CARRIER", help="Two users of this machine; start as root.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Come into a consortium: draw the silo's keys here, send their public halves, and make its folder."""
    from silotune.errors import InputError
    from silotune.silo import joining
    from silotune.silo.units import write_units

    two = tuple(name.strip() for name in users.split(",")) if users is not None else None
    if two is not None and len(two) != 2:
        raise InputError("--users: two names are wanted, WORKER,CARRIER.")
    place = folder or Path(joining.read_invitation(invitation).name)
    house, mark = joining.join(invitation, data, place, base, two)
    units = write_units(house)
    if as_json:
        typer.echo(json.dumps({"event": "joined", "folder": str(house.folder), "fingerprint": mark,
                               "units": list(map(str, units))}))  # fmt: skip
        return
    typer.echo(
        f"{house.folder}: joined as {house.silo.name}.\n"
        f"fingerprint {mark}\n"
        "Have the coordinator read theirs to you by telephone (silotune consortium status): it must be the same.\n"
        f"units for systemd: {units[0].parent}\n"
        f"Next: silotune silo doctor {place}, then silotune silo up {place}"
    )


@app.command()
def doctor(folder: Folder, as_json: AsJson = False) -> None:
    """Look at all that the silo needs, and say of what is wrong what to do; exits with 2 if something is."""
    from silotune.errors import InputError
    from silotune.silo.doctor import examine
    from silotune.silo.house import open_house

    bad = 0
    for found in examine(open_house(folder)):
        bad += not found.good
        if as_json:
            typer.echo(json.dumps({"event": "finding", "name": found.name, "good": found.good, "words": found.words}))
        else:
            typer.echo(f"{'ok   ' if found.good else 'WRONG'} {found.name}: {found.words}")
    if bad:
        raise InputError(f"{bad} of these {'is' if bad == 1 else 'are'} wrong; what to do is said with each.")


@app.command()
def pause(folder: Folder) -> None:
    """Answer nothing until `resume`; a server is told that the silo is paused."""
    from silotune.silo.house import PAUSED, open_house
    from silotune.silo.policy import rule

    rule(open_house(folder).folder, PAUSED, "")
    typer.echo("paused: this silo answers nothing until `silotune silo resume`.")


@app.command()
def resume(folder: Folder) -> None:
    """Answer again."""
    from silotune.silo.house import PAUSED, open_house

    (open_house(folder).folder / PAUSED).unlink(missing_ok=True)
    typer.echo("resumed: this silo answers again.")


@app.command()
def leave(folder: Folder) -> None:
    """Leave the consortium: it lets this silo in no more. What the silo remembers stays until `forget`."""
    from silotune.silo.house import open_house
    from silotune.silo.joining import leave

    house = open_house(folder)
    leave(house)
    typer.echo(f"{house.silo.name} has left. Stop `silotune silo up`; `silotune silo forget` deletes its memory.")


@app.command()
def ledger(folder: Folder, as_json: AsJson = False) -> None:
    """Show what has left this silo, from its own ledger: what, when, and how much."""
    from rich.console import Console

    from silotune.privacy.ledger import read_lines
    from silotune.report.left import as_rows, show
    from silotune.silo.house import open_house

    rows = as_rows(read_lines(Path(open_house(folder).silo.ledger)))
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        show(rows, Console())


@app.command()
def key(folder: Folder, as_json: AsJson = False) -> None:
    """Tell the public key by which a run knows this silo, for a recipe's `federation.members`."""
    from silotune.silo.house import open_house
    from silotune.silo.identity import public_key

    found = public_key(Path(open_house(folder).silo.memory))
    typer.echo(json.dumps({"event": "key", "key": found}) if as_json else found)


@app.command()
def forget(folder: Folder, as_json: AsJson = False) -> None:
    """Delete what a silo remembers of its runs; one that is going on cannot be gone on with then."""
    from silotune.silo.house import open_house
    from silotune.silo.memory import forget

    memory = Path(open_house(folder).silo.memory)
    runs = forget(memory)
    if as_json:
        typer.echo(json.dumps({"event": "forgotten", "memory": str(memory), "runs": runs}))
    else:
        typer.echo(f"{memory}: forgotten, what was remembered of {runs} run{'' if runs == 1 else 's'}.")


@app.command()
def up(folder: Folder) -> None:
    """Run a silo until it is stopped: its worker, which reads the text, and its carrier, which reaches the network."""
    from silotune.silo.house import open_house
    from silotune.silo.up import up

    up(open_house(folder), stopped(), lambda text: typer.echo(f"silotune: {text}", err=True))


@app.command(hidden=True)
def prepare(folder: Folder) -> None:
    """Give worker and carrier what is theirs, and end with 2 if they are not apart; before a unit starts a part."""
    from silotune.silo.house import open_house
    from silotune.silo.up import settle

    settle(open_house(folder))


@app.command()
def worker(
    folder: Folder,
    fetch: Annotated[bool, typer.Option("--fetch", help="Look that all is there, the base too, and end.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Time a step of training, and end.")] = False,
) -> None:
    """Run a silo's worker alone, as whatever starts it as its user does: `silo up`, or a unit of systemd."""
    from functools import partial

    from silotune.model.base import load_tokenizer, locate
    from silotune.model.embedded import NAME
    from silotune.model.stored import describe
    from silotune.silo import local_socket
    from silotune.silo.house import open_house
    from silotune.silo.policy import allow, require_base
    from silotune.silo.worker import Worker

    house = open_house(folder)
    config = house.config()
    place = locate(config.base or NAME)
    found = describe(place, load_tokenizer(place)).fingerprint
    require_base(house.policy, found)
    if measure:
        from silotune.silo.identity import public_key
        from silotune.silo.measure import seconds_per_step

        assert config.memory is not None
        public_key(config.memory)  # it must be able to read and write there
        typer.echo(json.dumps({"fingerprint": found, "seconds": seconds_per_step(config)}))
    if fetch or measure:
        return
    import silotune.training.evaluation
    import silotune.training.loop  # noqa: F401 - they take seconds to load, and the first message is not to wait for them

    _, carrier = house.users()
    answering = Worker(config, partial(allow, policy=house.policy, folder=house.folder))
    local_socket.serve(house.socket, answering, {carrier.number}, stopped())


@app.command()
def carrier(
    socket: Annotated[Path, typer.Option(help="Where the worker answers.")],
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the consortium.")],
    certificates: Annotated[Path | None, typer.Option(help="The CA's certificate (PEM).")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="The node's private key.")] = None,
) -> None:
    """Run a silo's carrier alone: its node, which takes messages to the worker."""
    import signal
    import sys

    from silotune.federation.carrier import carry

    def not_taken(*_: object) -> None:
        # Flower's client sends its own process SIGINT where a server refuses its signature, and says nothing.
        typer.echo(f"silotune: {superlink} does not take this node: it is no member's, or this machine's clock is "
                   "wrong. `silotune silo doctor` says which.", err=True)  # fmt: skip
        sys.exit(2)

    signal.signal(signal.SIGINT, not_taken)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    carry(socket, superlink, certificates, key)


@app.command()
def approve(
    folder: Folder,
    job: Annotated[
        str | None, typer.Argument(metavar="[HASH]", help="Of the job; without it, those that wait.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the jobs that wait for somebody's approval, or approve one, where the policy says `approve = true`."""
    from silotune.silo.house import open_house
    from silotune.silo.policy import approve, pending

    place = open_house(folder).folder
    waiting = pending(place)
    if job is None:
        for number, wanted in waiting.items():
            told = wanted.model_dump(mode="json")
            typer.echo(json.dumps({"job": number, **told}) if as_json else f"{number}\n{json.dumps(told, indent=2)}")
        if not waiting and not as_json:
            typer.echo("no job waits for approval.")
        return
    if job not in waiting:
        typer.echo("silotune: no job of that hash has been asked for here yet.", err=True)
    approve(place, job)
    typer.echo(json.dumps({"event": "approved", "job": job}) if as_json else f"approved: {job}")
