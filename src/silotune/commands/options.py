"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
Answers = Annotated[
    int, typer.Option("--answers", metavar="N", help="Answer N questions a silo in text, and score the answers; slow.")
]
