"""`silotune silo`: what a member does on its own machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

from silotune.commands.options import AsJson

app = typer.Typer(help="What a member does on its own machine.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _silo() -> None:
    """Commands of a member, so that a single one is not taken for the whole."""


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
