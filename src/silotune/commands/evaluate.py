"""`silotune evaluate`: a run's model on text that came later."""

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import silotune
from silotune.commands.options import Answers, AsJson, RunPath
from silotune.data.read.files import printable

Data = Annotated[str, typer.Option("--data", metavar="PATH", help="A file, a silo's folder, or a folder of silos.")]
Base = Annotated[bool, typer.Option("--base", help="Score the base model too.")]


def evaluate(run: RunPath, data: Data, base: Base = False, answers: Answers = 0, as_json: AsJson = False) -> None:
    """Score a run's model on all rows of some files: loss, token accuracy, labels and answers."""
    from silotune.report.tables import show_evaluation

    opened = silotune.open_run(run)
    with Console(stderr=True).status("reading") as status:

        def report(model: str, silo: str) -> None:
            status.update(Text(f"{model} on the rows of {printable(silo)}"))

        found = opened.evaluate(data, base=base, answers=answers, report=report)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json")))  # in ASCII: names and labels cannot steer a terminal
    else:
        show_evaluation(found, Console(width=None if sys.stdout.isatty() else 160))
