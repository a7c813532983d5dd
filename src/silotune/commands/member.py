"""`silotune silo`: what a member does on its own machine."""

import json
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from silotune.commands.options import AsJson

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The silo's folder, which holds silo.toml.")]
app = typer.Typer(help="What a member does on its own machine.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def key(
    memory: Annotated[
        Path | None, typer.Argument(metavar="MEMORY", help="The folder that the node's `memory` names.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell the public key by which a run knows this silo, for a recipe's `federation.members`."""
    from silotune.silo.identity import public_key
    from silotune.silo.memory import default_root

    found = public_key(memory or default_root())
    typer.echo(json.dumps({"event": "key", "key": found}) if as_json else found)


@app.command()
def forget(
    memory: Annotated[Path, typer.Argument(metavar="MEMORY", help="The folder that the node's `memory` names.")],
    as_json: AsJson = False,
) -> None:
    """Delete what a silo remembers of its runs; one that is going on cannot be gone on with then."""
    from silotune.silo.memory import forget

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

    up(open_house(folder), _stopped(), lambda text: typer.echo(f"silotune: {text}", err=True))


@app.command()
def worker(
    folder: Folder,
    fetch: Annotated[bool, typer.Option("--fetch", help="Look that all is there, the base too, and end.")] = False,
) -> None:
    """Run a silo's worker alone, as whatever starts it as its user does: `silo up`, or a unit of systemd."""
    from functools import partial

    from silotune.model.base import load_tokenizer, locate
    from silotune.model.embedded import NAME
    from silotune.model.stored import describe
    from silotune.silo import policy
    from silotune.silo.house import open_house
    from silotune.silo.policy import require_base
    from silotune.silo.worker import serve

    house = open_house(folder)
    config = house.config()
    place = locate(config.base or NAME)
    require_base(house.policy, describe(place, load_tokenizer(place)).fingerprint)
    if fetch:
        return
    _, carrier = house.users()
    answered = partial(policy.answered, policy=house.policy, folder=house.folder)
    serve(house.socket, config, {carrier.number}, _stopped(), answered=answered)


@app.command()
def carrier(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What the carrier writes.")],
    socket: Annotated[Path, typer.Option(help="Where the worker answers.")],
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink's Fleet API.")],
    port: Annotated[int, typer.Option(help="Of the SuperNode's own API, on this machine.")] = 9094,
    certificates: Annotated[Path | None, typer.Option(help="The CA's certificate (PEM).")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="The node's private key (PEM).")] = None,
) -> None:
    """Run a silo's carrier alone: a SuperNode, and what takes its messages to the worker."""
    from silotune.federation.supernode import carry

    carry(folder, socket, superlink, port, certificates, key, _stopped())


@app.command()
def approve(
    folder: Folder, job: Annotated[str, typer.Argument(metavar="HASH", help="Of the job, as the refusal tells it.")]
) -> None:
    """Approve a job by its hash, where the silo's policy says `approve = true`."""
    from silotune.silo.house import open_house
    from silotune.silo.policy import approve

    approve(open_house(folder).folder, job)
    typer.echo(f"approved: {job}")


def _stopped() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
