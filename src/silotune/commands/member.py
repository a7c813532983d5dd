"""`silotune silo`: what a member does on its own machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

from silotune.commands.options import AsJson

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
