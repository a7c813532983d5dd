"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
