"""`silotune compare`: was it worth it?"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import silotune
from silotune import streams
from silotune.commands.options import Answers, AsJson, RunPath
from silotune.data.read.files import printable
from silotune.federation.events import Event, Fields

Seeds = Annotated[
    int, typer.Option("--seeds", metavar="N", help="Train each model with N seeds: means and intervals over them.")
]
Rows = Annotated[
    str, typer.Option("--rows", metavar="20,50", help="Draw the gain over alone against the rows that a silo holds.")
]
Silos = Annotated[str, typer.Option("--silos", metavar="A,B", help="Train only these alone; tests are everybody's.")]


def compare(
    run: RunPath, seeds: Seeds = 1, rows: Rows = "", silos: Silos = "", answers: Answers = 0, as_json: AsJson = False
) -> None:
    """Compare a run's model with the base, each silo alone and all text pooled: the same budget, the same tests.

    Each silo alone takes as many rounds and optimizer steps as it took in the federation; pooled takes as many as all
    silos together. Batch, learning rate, its schedule and the start are the same. What is done is kept in RUN/compare,
    so that the command goes on where it stopped; the figures are in RUN/compare.json.
    """
    from silotune.report.tables import show_comparison

    counts = [_number(text) for text in rows.split(",") if text.strip()]
    names = [name.strip() for name in silos.split(",") if name.strip()]
    opened = silotune.open_run(run)
    with _progress() as watch:
        found = opened.compare(seeds=seeds, rows=counts, silos=names, answers=answers, watch=watch)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json")))  # in ASCII: names and labels cannot steer a terminal
    else:
        show_comparison(found, Console(width=None if sys.stdout.isatty() else 160))


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise silotune.InputError(f"--rows: {text.strip()[:40]!r} is not a whole number. Give --rows 20,50.") from None


@contextmanager
def _progress() -> Iterator[Callable[[Event], None]]:
    """Show what goes on, on a duplicate of standard error: a comparison silences the original."""
    descriptor = os.dup(2)
    try:
        console = Console(file=streams.remarks(descriptor))
        with console.status("reading") as status:
            title = ""

            def watch(event: Event) -> None:
                nonlocal title
                if event.kind == "model":
                    title = _title(event.fields)
                    if not console.is_terminal:
                        console.print(title, highlight=False, markup=False, soft_wrap=True)
                status.update(Text(title + _now(event)))

            yield watch
    finally:
        os.close(descriptor)


def _title(fields: Fields) -> str:
    rows = f" at {fields['rows']} rows" if fields["rows"] else ""
    name = printable(fields["model"])
    return f"model {fields['number']} of {fields['of']}: {name}{rows}, seed {fields['seed']}"


def _now(event: Event) -> str:
    if event.kind == "training":
        return f", round {event.fields['round']} of {event.fields['rounds']}"
    return f", on the rows of {printable(event.fields['silo'])}" if event.kind == "scoring" else ""
